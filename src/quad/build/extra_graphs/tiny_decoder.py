"""The tiny decoder of a build: distilled from the model's own, then a network like the others, which is quantized, exported and tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quad.build.calls.call_recorder import spread
from quad.build.open_and_slot import SlottedModel
from quad.build.smoke import float_references
from quad.compile.export import GraphSpec
from quad.core.errors import UnsupportedError, mismatch
from quad.core.extra_graphs import TINY_DECODER
from quad.core.progress import Progress
from quad.lora.fit.integers import BalancedSlots
from quad.model.device import device_of
from quad.model.slots.attention import add_sites
from quad.quantize.distill.tiny_decoder import SEED, STEPS, distil_tiny_decoder, tiny_decoder_of
from quad.quantize.observe.calibrate import CalibrationOptions, TaskRunner, plan_samples
from quad.quantize.observe.latent_preview import model_picture
from quad.quantize.observe.torch_session import torch_sessions
from quad.quantize.processes.dealt import ARRAYS, shared
from quad.runtime.conditioning.tokenizer import Tokenizer

RUNS, PICTURES = 8, 24  # finished pictures that are made for it, and given ones that are encoded
_PIECE = "tiny_decoder"
Arrays = Mapping[str, NDArray[Any]]


def with_tiny_decoder(model: SlottedModel, progress: Progress) -> SlottedModel:
    """The model with one network more, and what its graphs are fed with; of several processes the main one trains it.

    Raises:
        UnsupportedError: a latent pixel is not 2, 4, 8, ... picture pixels wide.
    """
    factor = model.base.latent.factor
    if factor & (factor - 1):
        raise UnsupportedError(mismatch("--tiny-decoder", "a latent pixel of 2, 4, 8, ... picture pixels", factor, "build without it"))
    piece = model.cache.read(_PIECE)
    arrays = piece[1] if piece is not None else shared(lambda: _distilled(model, progress), ARRAYS)
    if piece is None:
        model.cache.write(_PIECE, None, arrays)
    own = model.networks["vae_decoder"]
    network = tiny_decoder_of({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, factor)
    add_sites(network.to(device_of(own)))
    networks, specs = {**model.networks, TINY_DECODER: network}, _specs(model)
    references = float_references(networks, specs, model.table, ())
    return replace(model, networks=networks, specs={**model.specs, **specs}, references=(*model.references, *references))


def decoder_latents(model: SlottedModel) -> NDArray[np.float32]:
    """Latents `(n, C, h, w)` of finished pictures of the float model, and of the samples' own pictures as it encodes them."""
    base, samples = model.measured, spread(model.samples, RUNS)
    sessions, slots = torch_sessions(base, model.networks, model.table), BalancedSlots(model.adapters, model.table)
    options = CalibrationOptions(seed=SEED)
    runner = TaskRunner(base=base, sessions=dict(sessions), tokenizer=Tokenizer(base.tokenizer, base.text), options=options)
    named = {sample.adapter or base.tasks[sample.task].adapter for sample in samples}
    plan = plan_samples(base, samples, [adapter for adapter in model.adapters if adapter.name in named])
    made = [runner.denoise(sample, spec, slots.get(name or "", {}), index) for index, (sample, spec, name) in enumerate(plan)]
    pictures = [sample.image for sample in model.samples if sample.image is not None]
    encoder = sessions["vae_encoder"]
    return np.concatenate(
        [*made, *(encoder.run({"image": model_picture(picture, base.picture_size)}) for picture in spread(pictures, PICTURES))]
    )


def _distilled(model: SlottedModel, progress: Progress) -> Arrays:
    latents = torch.from_numpy(decoder_latents(model))

    def told(step: int, steps: int) -> None:
        if step % 50 == 0:
            progress(f"tiny decoder, step {step} of {steps}", step / steps)

    weights = distil_tiny_decoder(model.networks["vae_decoder"], latents, model.base.latent.factor, STEPS, told)
    return {name: tensor.numpy() for name, tensor in weights.items()}


def _specs(model: SlottedModel) -> dict[str, GraphSpec]:
    """Inputs of its graphs by name: those of the model's own decoder."""
    own = {spec.graph: spec for spec in model.specs.values() if spec.component == "vae_decoder"}
    return {tiny.graph: tiny for spec in own.values() for tiny in (replace(spec, component=TINY_DECODER),)}
