"""A torch network behind the runtime's Session, so that samplers and conditioning run it exactly as they run a compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.errors import BackendError, mismatch
from quad.core.extra_graphs import TINY_DECODER
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.model.base.open import Base
from quad.model.device import device_of, moved
from quad.model.slots.slot_tensors import slot_tensors
from quad.runtime.engines.engine import Session

Shapes = Mapping[str, tuple[int | None, ...]]
CallHook = Callable[[str, Mapping[str, NDArray[Any]], NDArray[Any]], None]  # component, inputs and output of one call


@final
class TorchSession:
    """One component as a `quad.runtime.engines.engine.Session`.

    Args:
        network: takes the inputs in order, and then the bound slots as one dict where there is a slot table.
        shapes: graph input name -> shape, None for a dynamic axis.
        table: its slots; unbound ones are the base without LoRA branches. None for a network that has none.
    """

    def __init__(self, network: nn.Module, shapes: Shapes, table: SlotTable | None = None) -> None:
        self._network, self._shapes, self._table = network, dict(shapes), table
        self._slots: dict[str, torch.Tensor] = {}
        self._device = device_of(network)

    @property
    def inputs(self) -> Shapes:
        """Graph input name -> shape, slots last."""
        return {**self._shapes, **(self._table.input_shapes() if self._table else {})}

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Give float slot inputs that stay until bound again; an empty mapping is the base without LoRA branches.

        Raises:
            BackendError: the network has no such input.
        """
        slots = self._table.input_shapes() if self._table else {}
        if unknown := [name for name in inputs if name not in slots]:
            raise BackendError(mismatch("torch session", "slot inputs of the table", unknown[0], "use slot_inputs() of this table"))
        self._slots = {} if self._table is None else slot_tensors(inputs, self._table, self._device)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The network's output for these and the bound inputs.

        Raises:
            BackendError: an input is missing.
        """
        if missing := [name for name in self._shapes if name not in inputs]:
            raise BackendError(mismatch("torch session", f"inputs {', '.join(self._shapes)}", f"no {missing[0]}", "give it"))
        arguments: Any = moved(tuple(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._shapes), self._device)
        with torch.no_grad():
            output: torch.Tensor = self._network(*arguments) if self._table is None else self._network(*arguments, slots=self._slots)
        return output.cpu().float().numpy()


@final
class RecordingSession:
    """A session that reports every call to a hook.

    Args:
        component: the name that the hook is given.
    """

    def __init__(self, session: Session, component: str, call_hook: CallHook) -> None:
        self._session, self._component, self._call_hook = session, component, call_hook

    @property
    def inputs(self) -> Shapes:
        return self._session.inputs

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._session.bind(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The session's output; the hook is given it too, and must copy what it keeps."""
        output = self._session.run(inputs)
        self._call_hook(self._component, inputs, output)
        return output


def torch_sessions(base: Base, networks: Mapping[str, nn.Module], table: SlotTable) -> dict[str, TorchSession]:
    """A session for each component of `component_networks`, with the graph contract's inputs; only the U-Net's batch is dynamic.

    One of a tiny decoder too, where there is one.

    Args:
        table: the slots of all of them.
    """
    grid, latent = base.latent.grid(base.picture_size), base.latent.channels
    text = table.of(TEXT_ENCODER)
    channels = int(base.unet.config.in_channels)  # type: ignore[union-attr, arg-type]
    unet: Shapes = {
        "sample": (None, channels, *grid),
        "timestep": (1,),
        "encoder_hidden_states": (None, base.text.rows, base.text.hidden),
    }
    decoders = [name for name in ("vae_decoder", TINY_DECODER) if name in networks]
    return {
        "unet": TorchSession(networks["unet"], unet, table.of(UNET)),
        "text_encoder": TorchSession(networks["text_encoder"], {"input_ids": (1, base.text.length)}, text if text.slots else None),
        "vae_encoder": TorchSession(networks["vae_encoder"], {"image": (1, 3, *base.picture_size.grid)}),
        **{name: TorchSession(networks[name], {"latent": (1, latent, *grid)}) for name in decoders},
    }


def bind_slots(sessions: Mapping[str, Session], slots: Mapping[str, NDArray[Any]]) -> None:
    """Give every torch session its own of an adapter's float slot inputs; without any, all of them are the base.

    Raises:
        BackendError: no session has such an input.
    """
    names_of = {component: session.inputs.keys() & slots.keys() for component, session in sessions.items()}
    if lost := slots.keys() - set().union(*names_of.values()):
        next_step = "slot the network that it belongs to"
        raise BackendError(mismatch("torch sessions", "a network for every slot input", f"none for {min(lost)}", next_step))
    for component, names in names_of.items():
        sessions[component].bind({name: slots[name] for name in names})
