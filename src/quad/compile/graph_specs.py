"""The four graphs of a pipeline: which torch module each comes from, and what it is fed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.nn import functional

from quad.compile.export import GraphSpec
from quad.core.picture_size import graph_name
from quad.core.ports import Sinusoid
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.model.base.open import Base
from quad.model.base.text.clip_pair import clip_encoders
from quad.model.device import device_of, moved
from quad.runtime.conditioning.denoising import layouts
from quad.runtime.conditioning.size_conditions import SizeConditions, with_sizes
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.conformance.drawn import decoder_latent, encoder_image

_SEED = 0
_WORDS = "a photo of a house with a garden, sunny day"


def component_specs(base: Base, networks: Mapping[str, nn.Module], table: SlotTable) -> dict[str, GraphSpec]:
    """Inputs of all graphs by name: one of each component, and those of further sizes.

    The denoiser reads the hidden states that the text encoder makes of its own.
    """
    text = text_spec(base, table)
    with torch.no_grad():
        encoder = networks["text_encoder"]
        features: Tensor = encoder(*moved(tuple(text.inputs.values()), device_of(encoder))).cpu()
    states, whole = features.split([base.text.length, features.shape[1] - base.text.length], dim=1)
    padded = torch.cat([functional.pad(states, (0, 0, 0, base.text.context - base.text.length)), whole], dim=1)
    hidden = torch.from_numpy(with_sizes(base.text, padded.numpy(), SizeConditions().numbers(base.picture_size)))
    specs = {"unet": unet_spec(base, table, hidden), "text_encoder": text, **vae_specs(base)}
    for size in base.more_sizes:
        sized = {"unet": unet_spec(base.at(size), table, hidden), **vae_specs(base.at(size))}
        specs |= {graph_name(component, size): replace(spec, size=size) for component, spec in sized.items()}
    return specs


def _noise(*shape: int) -> Tensor:
    """Fixed unit normal numbers: example inputs serve the smoke run too, where zeros would hide mistakes."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED))


def unet_spec(base: Base, table: SlotTable, hidden: Tensor | None = None) -> GraphSpec:
    """Inputs of `unet`: `sample` of all channels, `timestep`, `encoder_hidden_states`, then the slots; batch 1.

    The sample is what text-to-image starts from, noise without a condition and all to be made anew: calibrated ranges hold it.

    Args:
        table: of all components.
        hidden: a prompt's hidden states `(1, L, D)`, noise where not given.
    """
    grid = base.latent.grid(base.picture_size)
    latent = torch.zeros(1, base.latent.channels, *grid)
    channels = int(base.unet.config.in_channels)  # type: ignore[union-attr, arg-type]
    beside = [torch.ones(1, 1, *grid) if part == "mask" else latent for part in layouts(base.latent)[channels]]
    inputs = {
        "sample": torch.cat([_noise(*latent.shape), *beside], dim=1),
        "timestep": torch.tensor([float(base.schedule.steps // 2)]),
        "encoder_hidden_states": _noise(1, base.text.rows, base.text.hidden) if hidden is None else hidden,
    }
    return GraphSpec(component="unet", inputs=inputs, output="out_sample", slots=_slots(table.of(UNET)))


def text_spec(base: Base, table: SlotTable) -> GraphSpec:
    """Inputs of `text_encoder`: `input_ids` of an empty prompt, or of some words where padding is not read; `embeddings` and one id that
    reads them where textual inversions enter; then its slots.

    Args:
        table: of all components.
    """
    tokens = torch.full((1, base.text.length), base.text.pad_id, dtype=torch.int64)
    if not getattr(base.text_encoder, "reads_padding", True):
        tokens = torch.from_numpy(Tokenizer(base.tokenizer, base.text)(_WORDS).ids)
    inputs = {"input_ids": tokens}
    if base.text.first_vector_id is not msgspec.UNSET:
        tokens[0, -1] = base.text.first_vector_id
        tables = [encoder.get_input_embeddings().weight for encoder in clip_encoders(base.text_encoder)]
        table_rms = float(torch.cat([weight.flatten() for weight in tables]).square().mean().sqrt())
        inputs["embeddings"] = table_rms * _noise(1, base.text.length, base.text.hidden)
    return GraphSpec(component="text_encoder", inputs=inputs, output="last_hidden_state", slots=_slots(table.of(TEXT_ENCODER)))


def _slots(table: SlotTable) -> dict[str, Tensor]:
    return {name: 0.02 * _noise(*shape) for name, shape in table.input_shapes().items()}


def vae_specs(base: Base) -> dict[str, GraphSpec]:
    """Inputs of the two graphs that never have slots, by component; a bundle's conformance vectors have the same."""
    latent = decoder_latent((1, base.latent.channels, *base.latent.grid(base.picture_size)))
    image = torch.from_numpy(encoder_image(*base.picture_size.grid))
    return {
        "vae_encoder": GraphSpec(component="vae_encoder", inputs={"image": image}, output="latent"),
        "vae_decoder": GraphSpec(component="vae_decoder", inputs={"latent": torch.from_numpy(latent)}, output="image"),
    }


def sinusoid_of(base: Base) -> Sinusoid:
    """The embedding that the denoiser makes of its timestep, for graphs that take it ready-made."""
    timesteps = next(module for module in base.unet.modules() if isinstance(module, Timesteps))
    return Sinusoid(channels=timesteps.num_channels, cosine_first=timesteps.flip_sin_to_cos, shift=float(timesteps.downscale_freq_shift))
