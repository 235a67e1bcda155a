"""The four graphs of a pipeline: which torch module each comes from, and what it is fed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quad.compile.export import GraphSpec
from quad.core.ports import Sinusoid
from quad.core.slots import SlotTable
from quad.model.base import Base

_SEED = 0


def component_specs(base: Base, networks: Mapping[str, nn.Module], table: SlotTable) -> dict[str, GraphSpec]:
    """Inputs of all four graphs; the U-Net reads the hidden states of an empty prompt."""
    plain = plain_specs(base)
    with torch.no_grad():
        hidden: Tensor = networks["text_encoder"](*plain["text_encoder"].inputs.values())
    return {"unet": unet_spec(base, table, hidden), **plain}


def _noise(*shape: int) -> Tensor:
    """Fixed unit normal numbers: example inputs serve the smoke run too, where zeros would hide mistakes."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED))


def unet_spec(base: Base, table: SlotTable, hidden: Tensor | None = None) -> GraphSpec:
    """Inputs of `unet`: `sample` of all channels, `timestep`, `encoder_hidden_states`, then the slots; batch 1.

    The sample is what text-to-image starts from, noise without a condition and all to be made anew: calibrated ranges hold it.

    Args:
        hidden: a prompt's hidden states `(1, L, D)`, noise where not given.
    """
    side = base.size // base.latent.factor
    noise = _noise(1, base.latent.channels, side, side)
    beside = _input_channels(base) - base.latent.channels
    condition = torch.zeros(1, beside, side, side)
    condition[:, base.latent.channels :] = 1.0
    inputs = {
        "sample": torch.cat([noise, condition], dim=1),
        "timestep": torch.tensor([float(base.schedule.steps // 2)]),
        "encoder_hidden_states": _noise(1, base.text.length, base.text.hidden) if hidden is None else hidden,
    }
    slots = {name: 0.02 * _noise(*shape) for name, shape in table.input_shapes().items()}
    return GraphSpec("unet", inputs, "out_sample", slots)


def plain_specs(base: Base) -> dict[str, GraphSpec]:
    """Inputs of the three graphs without slots, by component."""
    side = base.size // base.latent.factor
    tokens = torch.full((1, base.text.length), base.text.pad_id, dtype=torch.int64)
    return {
        "text_encoder": GraphSpec("text_encoder", {"input_ids": tokens}, "last_hidden_state"),
        "vae_encoder": GraphSpec("vae_encoder", {"image": _noise(1, 3, base.size, base.size).clamp(-1, 1)}, "latent"),
        "vae_decoder": GraphSpec("vae_decoder", {"latent": _noise(1, base.latent.channels, side, side)}, "image"),
    }


def sinusoid_of(base: Base) -> Sinusoid:
    """The embedding that the U-Net makes of its timestep, for graphs that take it ready-made."""
    config: Any = base.unet.config
    return Sinusoid(int(config.block_out_channels[0]), bool(config.flip_sin_to_cos), float(config.freq_shift))


def _input_channels(base: Base) -> int:
    conv_in = base.unet.get_submodule("conv_in")
    if not isinstance(conv_in, nn.Conv2d):
        raise TypeError(f"conv_in is {type(conv_in).__name__}, not Conv2d")  # open_model admits U-Nets only
    return conv_in.in_channels
