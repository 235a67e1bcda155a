"""The LoRA-as-input network: `y = W x + B (A x)` with A and B given at every call. Source: QUAD Eq. 2-3, docs/method.md section 1."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quad.core.errors import CompatibilityError, mismatch
from quad.core.slots import SEARCHED, TEXT_ENCODER, UNET, Slot, SlotMode, SlotTable
from quad.core.tensor_names import lora_mid_name
from quad.lora.read import FloatAdapter
from quad.model.base.modules import TextModule, share_copy
from quad.model.base.text.vector_table import with_vector_table
from quad.model.slots.attention import add_sites
from quad.model.slots.held_weight import convolution, linear
from quad.model.slots.sites import Site, SitedConv2d, SitedLinear, collect_sites
from quad.model.slots.table import new_table


class SlotFeed(threading.local):
    """The values that the slots of a network read during one call: name to tensor. A slot that has none has no LoRA branch at all.

    Of each thread its own: calls with different adapters may run side by side.

    Args:
        correction: A, B and scale of the base's correction by name, behind those of every adapter; of all threads, and to be filled later.
    """

    tensors: Mapping[str, Tensor]

    def __init__(self, table: SlotTable, correction: dict[str, Tensor]) -> None:
        self.tensors = {}
        self.correction = correction
        self._table, self._names = table, tuple(table.input_shapes())

    def __reduce__(self) -> tuple[type[SlotFeed], tuple[SlotTable, dict[str, Tensor]]]:
        """A copy of a network has a feed of its own, with nothing bound."""
        return SlotFeed, (self._table, self.correction)

    @contextmanager
    def bound_to(self, slots: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Inside the block the slots read these; what is another network's may be among them.

        Raises:
            CompatibilityError: a slot's input is not there.
        """
        if slots and (missing := [name for name in self._names if name not in slots]):
            raise CompatibilityError(mismatch("slots", f"{len(self._names)} inputs", f"no {missing[0]!r}", "use slot_inputs()"))
        self.tensors = self._corrected({**slots, **self._scales(slots)} if slots else {})
        try:
            yield
        finally:
            # Nothing of an adapter outlives its call: A -> B -> A leaves no trace.
            self.tensors = {}

    def _corrected(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the rank channels of the correction behind those of the adapter."""
        for slot in self._table.slots:
            if slot.a_name in self.correction:
                for name, axis in ((slot.a_name, 0), (slot.b_name, 1), (slot.scale_name, 0)):
                    own = self.correction[name]
                    tensors[name] = torch.cat([_of_adapter(tensors[name], slot, axis), own], axis) if name in tensors else own
        return tensors

    def _scales(self, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`<path>.lora_scale` -> `(rank,)`, cut from the vectors that hold all of them; an adapter's A may have other ranks."""
        parts: dict[str, Tensor] = {}
        for name, members in self._table.scale_inputs().items():
            cut = slots[name].split([slots[slot.a_name].shape[0] for slot in members])
            parts |= {slot.scale_name: part for slot, part in zip(members, cut, strict=True)}
        return parts


def _of_adapter(tensor: Tensor, slot: Slot, axis: int) -> Tensor:
    """Without the zeros that stand in the channels of the base's correction, where it was padded to the slot's rank."""
    return tensor.narrow(axis, 0, slot.adapter_rank) if tensor.shape[axis] == slot.rank else tensor


class SlottedLinear(SitedLinear):
    """A Linear with a slot; W and A read the same Site, `A x` passes `<path>.lora_mid`, and a normalised slot then scales it."""

    def __init__(self, layer: nn.Linear, slot: Slot, feed: SlotFeed) -> None:
        super().__init__(layer, slot.path)
        self.slot, self.feed = slot, feed
        self.mid_site = Site(lora_mid_name(slot.path))

    def forward(self, input: Tensor) -> Tensor:
        x = self.site(input)
        y = linear(self, x)
        down, up = self.feed.tensors.get(self.slot.a_name), self.feed.tensors.get(self.slot.b_name)
        if down is None or up is None:
            return y
        if not len(down):  # the adapter has nothing here: what its A gives is zero
            self.mid_site(x.new_zeros(1, 1))
            return y
        mid = self.mid_site(functional.linear(x, down))
        scale = self.feed.tensors.get(self.slot.scale_name)
        return y + functional.linear(mid if scale is None else mid * scale, up)


class SlottedConv2d(SitedConv2d):
    """A Conv2d with a slot: A has the layer's kernel, stride, padding and dilation, B is 1x1."""

    def __init__(self, layer: nn.Conv2d, slot: Slot, feed: SlotFeed) -> None:
        super().__init__(layer, slot.path)
        self.slot, self.feed = slot, feed
        self.mid_site = Site(lora_mid_name(slot.path))

    def forward(self, input: Tensor) -> Tensor:
        x = self.site(input)
        y = convolution(self, x)
        down, up = self.feed.tensors.get(self.slot.a_name), self.feed.tensors.get(self.slot.b_name)
        if down is None or up is None:
            return y
        if not len(down):
            self.mid_site(x.new_zeros(1, 1, 1, 1))
            return y
        mid = self.mid_site(self._conv_forward(x, down, None))
        scale = self.feed.tensors.get(self.slot.scale_name)
        return y + functional.conv2d(mid if scale is None else mid * scale.reshape(-1, 1, 1), up)


class SlottedNetwork(nn.Module):
    """A U-Net with sites and slots; one call takes the adapter's tensors beside the picture's.

    Args:
        unet: diffusers U-Net whose slotted layers read `feed`.
        table: its slots, in module order.
    """

    def __init__(self, unet: nn.Module, table: SlotTable, feed: SlotFeed) -> None:
        super().__init__()
        self.unet, self.table, self._feed = unet, table, feed
        self.correction = feed.correction
        self.sites: dict[str, Site] = collect_sites(unet)
        self.train(unet.training)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, slots: Mapping[str, Tensor] | None = None) -> Tensor:
        """The raw network output `(batch, 4, h, w)`.

        Args:
            sample: `(batch, channels, h, w)`.
            timestep: `(1,)` or `(batch,)`.
            encoder_hidden_states: `(batch, tokens, hidden)`.
            slots: every slot input by graph input name; empty or None for the base without LoRA branches.

        Raises:
            CompatibilityError: a slot's input is not there.
        """
        with self._feed.bound_to(slots):
            output: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
            return output


class SlottedText(TextModule):
    """A text encoder with sites and slots, called as `TextModule` is, with the adapter's tensors beside the tokens and the vectors.

    Args:
        text_encoder: whose slotted layers read `feed`.
        table: its slots, in module order.
    """

    def __init__(self, text_encoder: nn.Module, table: SlotTable, feed: SlotFeed) -> None:
        super().__init__(text_encoder)
        self.table, self._feed = table, feed
        self.correction = feed.correction
        self.train(text_encoder.training)

    def forward(self, input_ids: Tensor, embeddings: Tensor | None = None, slots: Mapping[str, Tensor] | None = None) -> Tensor:
        """`last_hidden_state (1, L, D)`.

        Args:
            input_ids: `(1, L)` int64.
            embeddings: `(1, L, D)`, see `VectorTable`.
            slots: every slot input by graph input name; empty or None for the base without LoRA branches.

        Raises:
            CompatibilityError: a slot's input is not there.
        """
        with self._feed.bound_to(slots):
            return super().forward(input_ids, embeddings)


@dataclass(frozen=True)
class Slotted:
    """The networks of a bundle that have slots, and all slots of both.

    Args:
        text_encoder: None where no adapter reaches it.
        table: the U-Net's slots, then the text encoder's.
    """

    unet: SlottedNetwork
    text_encoder: SlottedText | None
    table: SlotTable


def slot_network(
    unet: nn.Module, adapters: Sequence[FloatAdapter], max_rank: int | None = None, mode: SlotMode = SEARCHED
) -> tuple[SlottedNetwork, SlotTable]:
    """A U-Net with slots for all `adapters`; the caller's stays as it is, the weights are shared.

    Raises:
        InputError, UnsupportedError: as `new_table` and `add_sites`; an adapter that reaches a text encoder is for `slot_networks`.
    """
    table = new_table({UNET: unet}, adapters, max_rank, mode=mode)
    return _slotted_unet(unet, table), table


def slot_networks(
    unet: nn.Module, text_encoder: nn.Module, adapters: Sequence[FloatAdapter], max_rank: int | None = None, room: int = 1,
    mode: SlotMode = SEARCHED,
) -> Slotted:  # fmt: skip
    """The networks with slots for all `adapters`, for `room` of them at once; the caller's stay as they are, the weights are shared.

    Raises:
        InputError, UnsupportedError: as `new_table` and `add_sites`.
    """
    networks = {UNET: unet, TEXT_ENCODER: TextModule(text_encoder)}
    return slotted_as(unet, text_encoder, new_table(networks, adapters, max_rank, room, mode))


def slotted_as(unet: nn.Module, text_encoder: nn.Module, table: SlotTable) -> Slotted:
    """The networks with the slots of a table that was made before; the caller's stay as they are, the weights are shared.

    Args:
        table: of these networks.
    """
    text_table = table.of(TEXT_ENCODER)
    return Slotted(_slotted_unet(unet, table.of(UNET)), _slotted_text(text_encoder, text_table) if text_table.slots else None, table)


def _slotted_unet(unet: nn.Module, table: SlotTable) -> SlottedNetwork:
    copied, feed = share_copy(unet), SlotFeed(table, {})
    _put_slots(copied, table, feed)
    return SlottedNetwork(copied, table, feed)


def _slotted_text(text_encoder: nn.Module, table: SlotTable) -> SlottedText:
    feed = SlotFeed(table, {})
    module = SlottedText(with_vector_table(share_copy(text_encoder)), table, feed)
    _put_slots(module, table, feed)
    return module


def _put_slots(network: nn.Module, table: SlotTable, feed: SlotFeed) -> None:
    """Sites everywhere, and slots where the table says, in place."""
    add_sites(network)
    for slot in table.slots:
        layer: Any = network.get_submodule(slot.path)
        slotted = SlottedLinear(layer, slot, feed) if slot.kind == "linear" else SlottedConv2d(layer, slot, feed)
        network.set_submodule(slot.path, slotted)
