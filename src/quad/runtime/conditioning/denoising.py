"""One planned run of the denoising loop: what the U-Net reads at every step, and where the loop begins.

The device, calibration and the OLSS solver plan with `plan_run`, so that ranges and tables are made on what the device will run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UsageError, VerificationError, mismatch
from quad.core.manifest import Beside, LatentSpec, TaskSpec, TextSpec
from quad.core.picture_size import PictureSize
from quad.runtime.conditioning.condition import Condition, Pictures, make_condition
from quad.runtime.conditioning.deep_reuse import DeepReuse
from quad.runtime.conditioning.guidance import Guidance, Network, PictureGuidance, guided_network, is_guided
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.size_conditions import DEFAULT_SIZES, SizeConditions, require_size_conditions, with_sizes
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import Runnable
from quad.runtime.samplers import Start, add_noise

Float = NDArray[np.float32]


class Model(Protocol):
    """The facts of a model that a base and a bundle's manifest both state."""

    @property
    def picture_size(self) -> PictureSize:
        """Width and height of its pictures."""
        ...

    @property
    def latent(self) -> LatentSpec: ...

    @property
    def text(self) -> TextSpec: ...


@dataclass(frozen=True)
class SizedModel:
    """A `Model` by its facts, for one of several sizes."""

    picture_size: PictureSize
    latent: LatentSpec
    text: TextSpec


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The graphs that a run is planned with, each with its adapter bound.

    Args:
        unet: called once per guidance side and step.
        texts: prompts to their hidden states, float32 `(1, L, D)` each.
        picture: a picture float32 `(1, 3, H, W)` in [-1, 1] to its model latent float32 `(1, c, h, w)`.
        reuse: of the U-Net's deep features in this run; None for none.
    """

    unet: Runnable
    texts: Callable[[Sequence[str]], Sequence[Float]]
    picture: Callable[[Float], Float]
    reuse: DeepReuse | None = None


def session_encoders(sessions: Mapping[str, Runnable], tokenizer: Tokenizer) -> Encoders:
    """Sessions by component name as they are: no clocks, no notes, and prompts are plain text."""

    def texts(prompts: Sequence[str]) -> list[Float]:
        return [text_features(sessions["text_encoder"], read_prompt(tokenizer, prompt), tokenizer.text) for prompt in prompts]

    return Encoders(unet=sessions["unet"], texts=texts, picture=lambda image: sessions["vae_encoder"].run({"image": image}))


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """One picture that is asked for.

    Args:
        spec: of the task, with what the caller chose for this picture.
        negative_prompt: read where the task is guided.
        noise: the first noise, float32 `(1, c, h, w)`; blending noises the picture with it too.
        training_steps: timesteps of the model's noise schedule, which a guidance's interval is a part of.
        sizes: what the model is told of the picture's size, if it is told any.
    """

    task: str
    spec: TaskSpec
    pictures: Pictures
    prompt: str
    negative_prompt: str = ""
    noise: Float
    training_steps: int = 1000
    sizes: SizeConditions = DEFAULT_SIZES


@dataclass(frozen=True)
class DenoisingRun:
    """Everything about one picture that does not change from step to step; `start` is None for a run from noise alone."""

    condition: Condition
    network: Network
    start: Start | None


def plan_run(encoders: Encoders, model: Model, inputs: RunInputs) -> DenoisingRun:
    """Read text and pictures, and build the network that a sampler runs. The U-Net itself is not called.

    Raises:
        UsageError: the task needs a picture or a mask that was not given.
        InputError: a picture is no picture, or the mask is empty.
        VerificationError: the graph has not the channels that its bundle says.
    """
    spec, latent = inputs.spec, model.latent
    condition = make_condition(inputs.task, spec, inputs.pictures, model.picture_size, latent.factor)
    # Text: a guided run reads the negative prompt too.
    texts = _texts(encoders, model, inputs, is_guided(spec))
    # Channels beside the latent, with the picture and without it.
    names = beside_of(encoders.unet, latent)
    encoded = encoders.picture(condition.image) if condition.image is not None and set(names) - {"mask"} else None
    beside = _beside(names, latent, encoded, condition.mask)
    pictured = None if spec.image_guidance is msgspec.UNSET else _picture_guidance(names, latent, condition, spec.image_guidance)
    network = guided_network(encoders.unet, beside, texts, Guidance.of(spec, inputs.training_steps), pictured, encoders.reuse)
    return DenoisingRun(condition, network, _start(inputs, condition, encoders.picture))


def _texts(encoders: Encoders, model: Model, inputs: RunInputs, guided: bool) -> tuple[Float, Float | None]:
    """Features of the prompt and, in a guided run, of the negative one, `(1, rows, D)` each.

    Raises:
        UsageError: sizes are said to a model that is told none.
    """
    text, size, sizes = model.text, model.picture_size, inputs.sizes.checked()
    require_size_conditions(text, sizes)
    if not guided:
        return with_sizes(text, encoders.texts([inputs.prompt])[0], sizes.numbers(size)), None
    if text.zeros_for_empty is True and not inputs.negative_prompt:
        positive = encoders.texts([inputs.prompt])[0]
        negative = np.zeros_like(positive)
    else:
        positive, negative = encoders.texts([inputs.prompt, inputs.negative_prompt])
    return with_sizes(text, positive, sizes.numbers(size)), with_sizes(text, negative, sizes.numbers(size, negative=True))


def draw_noise(
    seed: int, latents: Float | None, model: Model, generator: np.random.Generator | None = None
) -> tuple[np.random.Generator, Float]:
    """The generator of a run and its first noise, float32 `(1, c, h, w)`; `latents` takes the noise's place.

    Args:
        generator: in place of the seed's own.

    Raises:
        UsageError: a negative seed.
        InputError: latents of another shape, or not finite.
    """
    if seed < 0:
        raise UsageError(mismatch("seed", "0 or more", seed, "choose another"))
    shape = (1, model.latent.channels, *model.latent.grid(model.picture_size))
    rng = np.random.default_rng(seed) if generator is None else generator
    noise = rng.standard_normal(shape).astype(np.float32)
    if latents is None:
        return rng, noise
    if latents.shape != shape or not np.isfinite(latents).all():
        got = f"shape {latents.shape}" if latents.shape != shape else "NaN or Inf"
        raise InputError(mismatch("latents", f"finite float32 {shape}", got, "draw them anew"))
    return rng, np.asarray(latents, np.float32)


def beside_of(session: Runnable, latent: LatentSpec) -> tuple[Beside, ...]:
    """Names of the channels that follow the latent in the graph's `sample`.

    Raises:
        VerificationError: the graph has another number of channels.
    """
    shape = session.inputs.get("sample", ())
    channels = shape[1] if len(shape) == 4 else None
    by_channels = layouts(latent)
    if channels not in by_channels:
        expected = f"sample with {' or '.join(str(number) for number in by_channels)} channels"
        raise VerificationError(mismatch("graph unet", expected, f"shape {shape}", "build the bundle again"))
    return by_channels[channels]


def layouts(latent: LatentSpec) -> dict[int, tuple[Beside, ...]]:
    """Channels that a graph's `sample` may have -> what follows the latent in them."""
    guesses: tuple[tuple[Beside, ...], ...] = ((), ("condition", "mask"))
    width = {"mask": 1, "condition": latent.channels, "raw-condition": latent.channels}
    candidates = guesses if latent.beside is msgspec.UNSET else (latent.beside,)
    return {latent.channels + sum(width[part] for part in layout): layout for layout in candidates}


def _picture_guidance(names: tuple[Beside, ...], latent: LatentSpec, condition: Condition, scale: float) -> PictureGuidance | None:
    """The side without a picture: zeros where its latent would be. None where that side counts nothing."""
    if scale == 1.0:
        return None
    without = _beside(names, latent, None, condition.mask)
    if without is None:
        raise VerificationError(mismatch("graph unet", "a condition latent", "none, but its tasks use one", "build the bundle again"))
    return PictureGuidance(scale, without)


def _beside(names: tuple[Beside, ...], latent: LatentSpec, encoded: Float | None, mask: Float) -> Float | None:
    """The channels beside the latent, float32 `(1, k, h, w)`; zeros for a condition latent that is None."""
    empty = np.zeros((1, latent.channels, *mask.shape[2:]), np.float32)
    parts = {"mask": mask, "condition": empty, "raw-condition": empty}
    if encoded is not None:
        scale, shift = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (latent.scale, latent.shift))
        parts |= {"condition": encoded, "raw-condition": encoded / scale + shift}
    return np.concatenate([parts[name] for name in names], axis=1) if names else None


def _start(inputs: RunInputs, condition: Condition, encode: Callable[[Float], Float]) -> Start | None:
    """Where the loop begins, and what holds it to the given picture; as diffusers, all of a mask's inside begins at noise."""
    if condition.picture is None:
        return None
    spec, noise = inputs.spec, inputs.noise
    x0 = encode(condition.picture)
    strength = 1.0 if spec.strength is msgspec.UNSET else spec.strength
    from_noise = spec.strength is msgspec.UNSET or (spec.mask == "input" and strength == 1.0)
    inside = condition.mask.astype(np.float64)

    def keep(x: NDArray[np.float64], abar: float) -> NDArray[Any]:
        return np.asarray((1 - inside) * add_noise(x0, noise, abar) + inside * x)

    return Start(None if from_noise else x0, strength, keep if spec.blend else None)
