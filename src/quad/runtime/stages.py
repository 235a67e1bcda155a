"""The three stages of a picture, which may belong to different threads: prepare (text, pictures), denoise, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import BackendError, mismatch
from quad.core.extra_graphs import SHALLOW_UNET, TINY_DECODER
from quad.core.manifest import BundleManifest, TaskSpec
from quad.core.picture_size import PictureSize, graph_name
from quad.core.slots import UNET
from quad.runtime.adapter_defaults import sampler_text
from quad.runtime.adapters.block_weights import Weight
from quad.runtime.adapters.buffers import AdapterMix
from quad.runtime.conditioning.condition import PasteBack, Pictures
from quad.runtime.conditioning.deep_reuse import DeepReuse
from quad.runtime.conditioning.denoising import DenoisingRun, Encoders, RunInputs, SizedModel, draw_noise, plan_run
from quad.runtime.conditioning.embeddings import TextEmbeddings
from quad.runtime.conditioning.guidance import Guidance, is_guided
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conditioning.text_memo import TextMemo
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.graph import Graph
from quad.runtime.preview import latent_size, require_tiny_decoder
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.request import Request, Resolved
from quad.runtime.samplers import OnStep, SamplingRun, plan_sampling
from quad.runtime.samplers.contract import split_output

Float = NDArray[np.float32]
OutputType = Literal["pil", "np", "latent"]
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """The result of one call.

    Args:
        images: PIL pictures; or an array of them, as `output_type` says.
        notes: what the user should be told, one line each: unknown words, resized masks, unused inputs.
        timings_ms: `text_encoder`, `vae_encoder` (where a picture is read), `unet` (all steps), `vae_decoder`, `total`. A graph that the
            memory plan does not keep is loaded within its own; what passed between two stages of a picture is in none.
        adapters: adapter name -> weight, as used.
        sampler: `KIND:STEPS`, as used; empty in an answer of an older server.
        guidance: as used; None there.
        seeds: of each picture, where it had one.
        facts: of each picture, for its file; none in an answer of a server.
    """

    images: Any
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    task: str
    adapters: Mapping[str, Weight]
    seed: int
    sampler: str = ""
    guidance: float | None = None
    seeds: tuple[int, ...] = ()
    facts: tuple[PictureFacts, ...] = ()


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

    def watched(self, prediction: str) -> tuple[Prepared, Callable[[], Float]]:
        """The same, and a function that tells the clean latent `(1, c, h, w)` as the network saw it when it was called last."""
        seen: list[tuple[NDArray[Any], NDArray[Any], float]] = []
        network, abars = self.denoising.network, iter(self.sampling.sampler.sampling.abars[self.sampling.first :])

        def watch(x: NDArray[Any], timestep: float) -> NDArray[Any]:
            output = network(x, timestep)
            seen[:] = [(x, output, next(abars))]
            return output

        def estimate() -> Float:
            x, output, abar = seen[0]
            x0, _ = split_output(prediction, np.asarray(output, np.float64), np.asarray(x, np.float64), abar)
            return x0.astype(np.float32)

        return replace(self, denoising=replace(self.denoising, network=watch)), estimate


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The graphs of one bundle at work. Each stage binds what it needs itself, so that stages of different pictures may alternate."""

    manifest: BundleManifest
    graphs: Mapping[str, Graph]
    tokenizer: Tokenizer
    embeddings: TextEmbeddings

    def graph(self, component: str, size: PictureSize | None, group: int = 0) -> Graph:
        """The graph of a component for pictures of a size, None for the bundle's first one, and a group of adapters, counted from 0."""
        further = None if size in (None, self.manifest.picture_size) else size
        return self.graphs[graph_name(component, further, group)]

    def prepare(self, request: Request, resolved: Resolved, mix: AdapterMix, texts: TextMemo | None = None) -> Prepared:
        """Everything before the first step; the U-Net is not touched.

        Args:
            texts: of earlier pictures of the same call, which this one adds to.

        Raises:
            UsageError: an input that the task needs is missing. InputError: a picture is no picture, the mask is empty.
        """
        clocks, spec = Clocks(), resolved.spec
        text_notes = _guidance_notes(spec, request.negative_prompt)
        with clocks.time("total"):
            model = SizedModel(resolved.size or self.manifest.picture_size, self.manifest.latent, self.manifest.text)
            rng, noise = draw_noise(request.seed, request.latents, model, request.generator)
            inputs = RunInputs(
                task=resolved.task,
                spec=spec,
                pictures=Pictures(request.image, request.mask_image, request.mask_grow),
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                noise=noise,
                training_steps=self.manifest.schedule.steps,
                sizes=request.sizes,
            )
            encoders = self._encoders(request, resolved, mix, clocks, text_notes)
            if texts is not None:
                encoders = replace(encoders, texts=partial(texts.encode, mix, encoders.texts))
            denoising = plan_run(encoders, model, inputs)
            sampling = plan_sampling(spec.sampler, self.manifest.schedule, rng, denoising.start)
        return Prepared(
            request=request,
            resolved=resolved,
            mix=mix,
            denoising=denoising,
            sampling=sampling,
            noise=noise,
            notes=(*denoising.condition.notes, *resolved.notes, *mix.notes, *text_notes, *self._interval_notes(spec, sampling)),
            clocks=clocks,
        )

    def lay_out(self, resolved: Resolved, mix: AdapterMix) -> None:
        """Make the adapters of a picture ready to be bound to its U-Net, where that is in memory; any thread may."""
        for unet in self._unets(resolved, mix):
            unet.lay_out(mix)

    def _unets(self, resolved: Resolved, mix: AdapterMix) -> list[Graph]:
        """The graphs that a picture is denoised by, the whole one first."""
        shallow = [self.graphs[SHALLOW_UNET]] if resolved.reuse > 1 else []
        return [self.graph(UNET, resolved.size, mix.group), *shallow]

    def denoise(self, prepared: Prepared, on_step: OnStep | None) -> Float:
        """From noise to the clean latent; what `on_step` raises ends it, and leaves nothing behind that another picture would see."""
        unets = self._unets(prepared.resolved, prepared.mix)
        with prepared.clocks.time("total"), prepared.clocks.time("unet"), ExitStack() as stack:
            for unet in unets:
                stack.enter_context(unet.loaded())
                unet.bind(prepared.mix)
            return prepared.sampling.run(prepared.denoising.network, prepared.noise, on_step)

    def decode(self, prepared: Prepared, x0: Float, output_type: OutputType = "pil") -> PipelineOutput:
        """The picture of a clean latent.

        Raises:
            UsageError: no such type of output.
            BackendError: the engine failed, or gave numbers that are not finite.
        """
        return PipelineOutput(
            images=x0 if output_type == "latent" else self._picture(prepared, x0, output_type),
            notes=tuple(dict.fromkeys(prepared.notes)),
            timings_ms=prepared.clocks.timings_ms,
            task=prepared.resolved.task,
            adapters=dict(prepared.mix.weights),
            seed=prepared.request.seed,
            sampler=sampler_text(prepared.resolved.spec.sampler),
            guidance=prepared.resolved.spec.guidance,
            seeds=() if prepared.request.generator is not None else (prepared.request.seed,),
            facts=(_facts(prepared, self.manifest),),
        )

    def tiny_picture(self, latents: Float) -> Image.Image:
        """The picture that the tiny decoder makes of latents `(1, c, h, w)`, on their way or clean.

        Raises:
            UsageError: the bundle has none, or none for latents of that shape.
        """
        require_tiny_decoder(self.manifest)
        size = latent_size(self.manifest, latents)
        return to_picture(np.nan_to_num(self.graph(TINY_DECODER, size).run({"latent": np.asarray(latents, np.float32)})))

    def _interval_notes(self, spec: TaskSpec, sampling: SamplingRun) -> list[str]:
        """A line where an interval leaves no step of this run guided."""
        guidance = Guidance.of(spec, self.manifest.schedule.steps)
        timesteps = sampling.sampler.sampling.timesteps[sampling.first :]
        if guidance.interval is None or not is_guided(spec) or any(map(guidance.counts_at, timesteps)):
            return []
        return [f"guidance interval {guidance.interval}: no step of {sampler_text(spec.sampler)} falls into it, the prompt counts plainly"]

    def _picture(self, prepared: Prepared, x0: Float, output_type: OutputType) -> Any:
        """A list of one PIL picture, or float32 `(1, H, W, 3)` in [0, 1]."""
        clocks, paste = prepared.clocks, prepared.denoising.condition.paste
        with clocks.time("total"):
            decoder = TINY_DECODER if prepared.resolved.tiny_decoder else "vae_decoder"
            with clocks.time("vae_decoder"):
                image = self.graph(decoder, prepared.resolved.size).run({"latent": np.asarray(x0, np.float32)})
            if not np.isfinite(image).all():
                next_step = "use guidance_scale or adapter weights nearer to 1"
                raise BackendError(mismatch(f"graph {decoder}", "a picture of finite numbers", "NaN or Inf", next_step))
            if output_type == "np" and paste is None:
                return np.clip(image.transpose(0, 2, 3, 1) / 2 + np.float32(0.5), 0, 1).astype(np.float32)
            picture = to_picture(image, paste)
            return [picture] if output_type == "pil" else np.asarray(picture, np.float32)[None] / np.float32(255)

    def _encoders(self, request: Request, resolved: Resolved, mix: AdapterMix, clocks: Clocks, notes: list[str]) -> Encoders:
        """The graphs with this adapter, on the clock; what the tokenizer notes is added to `notes`."""

        def texts(prompts: Sequence[str]) -> list[Float]:
            encoder, hidden = self.graphs["text_encoder"], list[Float]()
            with clocks.time("text_encoder"), encoder.loaded():
                encoder.bind(mix)
                for prompt in prompts:
                    tokens = read_prompt(self.tokenizer, prompt, request.prompt_syntax, self.embeddings.words)
                    negative = "" if prompt == request.prompt else "negative "
                    notes.extend(negative + line for line in tokens.notes)
                    hidden.append(text_features(encoder, tokens, self.tokenizer.text))
            return hidden

        def picture(image: Float) -> Float:
            with clocks.time("vae_encoder"):
                latent: Float = self.graph("vae_encoder", resolved.size).run({"image": image})
            return latent

        unet, *shallow = self._unets(resolved, mix)
        reuse = DeepReuse(whole=unet, shallow=shallow[0], every=resolved.reuse) if shallow else None
        return Encoders(unet=unet, texts=texts, picture=picture, reuse=reuse)


def _facts(prepared: Prepared, manifest: BundleManifest) -> PictureFacts:
    """Facts for the file of this picture."""
    request, spec, paste = prepared.request, prepared.resolved.spec, prepared.denoising.condition.paste
    height, width = (prepared.resolved.size or manifest.picture_size).grid if paste is None else paste.original.shape[:2]
    own_noise = request.generator is not None or request.latents is not None
    return PictureFacts(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        sampler=sampler_text(spec.sampler),
        guidance=spec.guidance,
        guidance_interval=spec.guidance_interval if is_guided(spec) and spec.guidance_interval is not msgspec.UNSET else None,
        seed=None if own_noise else request.seed,
        size=(width, height),
        model=(manifest.name, manifest.sha256),
        adapters=dict(prepared.mix.weights),
        reuse=prepared.resolved.reuse,
        tiny_decoder=prepared.resolved.tiny_decoder,
        strength=spec.strength if isinstance(spec.strength, float) and spec.reads_picture else None,
        edited=spec.reads_picture,
    )


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
    if spec.guidance_interval is not msgspec.UNSET:
        off.append("guidance interval: it counts only with guidance above 1, it was not used")
    return off + (["negative prompt: it counts only with guidance above 1, it was not used"] if negative_prompt else [])
