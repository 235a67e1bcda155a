"""The three stages of a picture, which may belong to different threads: prepare (text, pictures), denoise, decode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import BackendError, mismatch
from quad.core.manifest import BundleManifest, TaskSpec
from quad.runtime.adapters.buffers import AdapterMix
from quad.runtime.conditioning.condition import PasteBack, Pictures
from quad.runtime.conditioning.denoising import DenoisingRun, Encoders, RunInputs, draw_noise, is_guided, plan_run
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.prompt_syntax import PromptSyntax
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.graph import Graph
from quad.runtime.request import Request, Resolved
from quad.runtime.samplers import OnStep, SamplingRun, plan_sampling

Float = NDArray[np.float32]
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """The result of one call.

    Args:
        images: one PIL picture.
        notes: what the user should be told, one line each: unknown words, resized masks, unused inputs.
        timings_ms: `text_encoder`, `vae_encoder` (where a picture is read), `unet` (all steps), `vae_decoder`, `total`. A graph that the
            memory plan does not keep is loaded within its own; what passed between two stages of a picture is in none.
        adapters: adapter name -> weight, as used.
    """

    images: list[Image.Image]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    task: str
    adapters: dict[str, float]
    seed: int


@dataclass(frozen=True)
class Clocks:
    """Times of one picture, by what they were spent on."""

    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block's wall time to `name`."""
        start = perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (perf_counter() - start) * 1e3


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture up to its first step, to be denoised once: its sampler, its generator and its clocks go on."""

    request: Request
    resolved: Resolved
    mix: AdapterMix
    denoising: DenoisingRun
    sampling: SamplingRun
    noise: Float
    notes: tuple[str, ...]
    clocks: Clocks = field(default_factory=Clocks)


@dataclass(frozen=True)
class Stages:
    """The graphs of one bundle at work. Each stage binds what it needs itself, so that stages of different pictures may alternate."""

    manifest: BundleManifest
    graphs: Mapping[str, Graph]
    tokenizer: Tokenizer

    def prepare(self, request: Request, resolved: Resolved, mix: AdapterMix) -> Prepared:
        """Everything before the first step; the U-Net is not touched.

        Raises:
            UsageError: an input that the task needs is missing. InputError: a picture is no picture, the mask is empty.
        """
        clocks, spec = Clocks(), resolved.spec
        text_notes = _guidance_notes(spec, request.negative_prompt)
        with clocks.time("total"):
            rng, noise = draw_noise(request.seed, request.latents, self.manifest)
            inputs = RunInputs(
                task=resolved.task,
                spec=spec,
                pictures=Pictures(request.image, request.mask_image, request.mask_grow),
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                noise=noise,
            )
            denoising = plan_run(self._encoders(mix, clocks, text_notes, request.prompt_syntax), self.manifest, inputs)
            sampling = plan_sampling(spec.sampler, self.manifest.schedule, rng, denoising.start)
        return Prepared(
            request=request,
            resolved=resolved,
            mix=mix,
            denoising=denoising,
            sampling=sampling,
            noise=noise,
            notes=(*denoising.condition.notes, *resolved.notes, *mix.notes, *text_notes),
            clocks=clocks,
        )

    def denoise(self, prepared: Prepared, on_step: OnStep | None) -> Float:
        """From noise to the clean latent; what `on_step` raises ends it, and leaves nothing behind that another picture would see."""
        unet = self.graphs["unet"]
        with prepared.clocks.time("total"), prepared.clocks.time("unet"), unet.loaded():
            unet.bind(prepared.mix)
            return prepared.sampling.run(prepared.denoising.network, prepared.noise, on_step)

    def decode(self, prepared: Prepared, x0: Float) -> PipelineOutput:
        """The picture of a clean latent.

        Raises:
            BackendError: the engine failed, or gave numbers that are not finite.
        """
        clocks = prepared.clocks
        with clocks.time("total"):
            with clocks.time("vae_decoder"):
                image = self.graphs["vae_decoder"].run({"latent": np.asarray(x0, np.float32)})
            if not np.isfinite(image).all():
                next_step = "use guidance_scale or adapter weights nearer to 1"
                raise BackendError(mismatch("graph vae_decoder", "a picture of finite numbers", "NaN or Inf", next_step))
            picture = to_picture(image, prepared.denoising.condition.paste)
        return PipelineOutput(
            images=[picture],
            notes=tuple(dict.fromkeys(prepared.notes)),
            timings_ms=clocks.timings_ms,
            task=prepared.resolved.task,
            adapters=dict(prepared.mix.weights),
            seed=prepared.request.seed,
        )

    def _encoders(self, mix: AdapterMix, clocks: Clocks, notes: list[str], syntax: PromptSyntax) -> Encoders:
        """The graphs with this adapter, on the clock; what the tokenizer notes is added to `notes`."""

        def texts(prompts: Sequence[str]) -> list[Float]:
            encoder, hidden = self.graphs["text_encoder"], list[Float]()
            with clocks.time("text_encoder"), encoder.loaded():
                encoder.bind(mix)
                for prompt in prompts:
                    tokens = read_prompt(self.tokenizer, prompt, syntax)
                    notes.extend(tokens.notes)
                    hidden.append(text_features(encoder, tokens))
            return hidden

        def picture(image: Float) -> Float:
            with clocks.time("vae_encoder"):
                latent: Float = self.graphs["vae_encoder"].run({"image": image})
            return latent

        return Encoders(unet=self.graphs["unet"], texts=texts, picture=picture)


def to_picture(image: NDArray[np.float32], paste: PasteBack | None = None) -> Image.Image:
    """The VAE decoder's output `(1, 3, H, W)`, clamped, as a picture; laid into the original where `paste` says so."""
    pixels = np.clip((image[0].transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.float32)
    return Image.fromarray(np.rint(pixels).astype(np.uint8) if paste is None else _pasted(pixels, paste))


def _pasted(made: Float, paste: PasteBack) -> NDArray[np.uint8]:
    """The new picture in the original, uint8 `(H, W, 3)`; a channel and a few rows at a time, for the original may be large."""
    pixels = np.empty_like(paste.original)
    for channel in range(pixels.shape[2]):
        new = paste.fit.back(made[..., channel : channel + 1])[..., 0]
        for top in range(0, len(pixels), _ROWS):
            rows = slice(top, top + _ROWS)
            weight, old = paste.weight[rows, :, 0], paste.original[rows, :, channel]
            pixels[rows, :, channel] = np.rint(weight * np.clip(new[rows], 0, 255) + (1 - weight) * old)
    return pixels


def _guidance_notes(spec: TaskSpec, negative_prompt: str) -> list[str]:
    """A line for each wish about guidance that has no effect."""
    if is_guided(spec):
        return []
    off = [f"guidance {spec.guidance:g}: at 1 and below there is none, the prompt alone counts"] if spec.guidance < 1.0 else []
    if spec.image_guidance is not msgspec.UNSET and spec.image_guidance < 1.0:
        off.append(f"image guidance {spec.image_guidance:g}: below 1 there is no guidance, the prompt alone counts")
    return off + (["negative prompt: it counts only with guidance above 1, it was not used"] if negative_prompt else [])
