"""The three stages of a picture, which may belong to different threads: prepare (text, pictures), denoise, decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import BackendError, mismatch
from quad.core.manifest import BundleManifest
from quad.runtime.adapters.mixer import Adapted
from quad.runtime.conditioning.condition import Condition, make_condition, to_picture
from quad.runtime.conditioning.denoising import Denoising, Inputs, is_guided, plan_denoising
from quad.runtime.conditioning.guidance import draw_noise
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.graph import Graph
from quad.runtime.output import PipelineOutput, Run
from quad.runtime.request import Request, Resolved
from quad.runtime.samplers import OnStep, count_calls, run_sampler

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """A picture up to its first step, to be denoised once: its generator and its clocks go on.

    Args:
        calls: how many steps `on_step` will be told of.
    """

    request: Request
    resolved: Resolved
    adapted: Adapted
    condition: Condition
    denoising: Denoising
    noise: Float
    rng: np.random.Generator
    calls: int
    run: Run = field(default_factory=Run)


class Stages:
    """The graphs of one bundle at work. Each stage binds what it needs itself, so that stages of different pictures may alternate."""

    def __init__(self, manifest: BundleManifest, graphs: Mapping[str, Graph], tokenizer: Tokenizer) -> None:
        self._manifest, self._graphs, self._tokenizer = manifest, graphs, tokenizer

    def prepare(self, request: Request, resolved: Resolved, adapted: Adapted) -> Prepared:
        """Everything before the first step; the U-Net is not touched.

        Raises:
            UsageError: an input that the task needs is missing. InputError: a picture is no picture, the mask is empty.
        """
        run, manifest, spec = Run(), self._manifest, resolved.spec
        with run.clock("total"):
            rng, noise = draw_noise(request.seed, request.latents, manifest)
            condition = make_condition(resolved.task, spec, request.given, manifest.size, manifest.latent.factor)
            run.notes += [*condition.notes, *resolved.notes, *adapted.notes]
            texts = self._texts(request, is_guided(spec), adapted, run)
            inputs = Inputs(condition, texts, noise, partial(self._encode, run))
            denoising = plan_denoising(self._graphs["unet"], manifest.latent, spec, inputs)
            calls = count_calls(spec.sampler, manifest.schedule, denoising.start)
        return Prepared(request, resolved, adapted, condition, denoising, noise, rng, calls, run)

    def denoise(self, prepared: Prepared, on_step: OnStep | None) -> Float:
        """From noise to the clean latent; what `on_step` raises ends it, and leaves nothing behind that another picture would see."""
        unet, spec, adapted = self._graphs["unet"], prepared.resolved.spec, prepared.adapted
        with prepared.run.clock("total"), prepared.run.clock("unet"), unet.loaded():
            unet.bind(adapted.buffers, adapted.keep_as)
            network, start = prepared.denoising.network, prepared.denoising.start
            return run_sampler(spec.sampler, self._manifest.schedule, network, prepared.noise, prepared.rng, on_step, start=start)

    def decode(self, prepared: Prepared, x0: Float) -> PipelineOutput:
        """The picture of a clean latent.

        Raises:
            BackendError: the engine failed, or gave numbers that are not finite.
        """
        run, resolved = prepared.run, prepared.resolved
        with run.clock("total"):
            with run.clock("vae_decoder"):
                image = self._graphs["vae_decoder"].run({"latent": np.asarray(x0, np.float32)})
            if not np.isfinite(image).all():
                then = "use guidance_scale or adapter weights nearer to 1"
                raise BackendError(mismatch("graph vae_decoder", "a picture of finite numbers", "NaN or Inf", then))
            picture = to_picture(image, prepared.condition.paste)
        notes, weights = tuple(dict.fromkeys(run.notes)), dict(prepared.adapted.weights)
        return PipelineOutput([picture], notes, run.timings_ms, resolved.task, weights, prepared.request.seed)

    def _texts(self, request: Request, guided: bool, adapted: Adapted, run: Run) -> tuple[Float, Float | None]:
        encoder, negative = self._graphs["text_encoder"], request.negative_prompt
        with run.clock("text_encoder"), encoder.loaded():
            encoder.bind(adapted.buffers, adapted.keep_as)
            if guided:
                return self._text(request.prompt, run), self._text(negative, run)
            if negative:
                run.notes.append("negative prompt: it counts only with guidance other than 1, it was not used")
            return self._text(request.prompt, run), None

    def _text(self, prompt: str, run: Run) -> Float:
        tokens = self._tokenizer(prompt)
        run.notes += tokens.notes
        hidden: Float = self._graphs["text_encoder"].run({"input_ids": tokens.ids})
        return hidden

    def _encode(self, run: Run, image: Float) -> Float:
        with run.clock("vae_encoder"):
            latent: Float = self._graphs["vae_encoder"].run({"image": image})
        return latent
