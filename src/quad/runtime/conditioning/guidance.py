"""Classifier-free guidance: what the U-Net is asked at a step, and how its answers become one.

Source: Ho and Salimans 2022; Brooks et al. 2023 (guidance by a picture too); Kynkäänniemi et al. 2024 (guidance in an interval of noise
levels alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import TaskSpec
from quad.runtime.conditioning.deep_reuse import DeepReuse
from quad.runtime.engines.engine import Runnable

Float = NDArray[np.float32]
Network = Callable[[NDArray[Any], float], NDArray[Any]]
OPTION = "guidance_interval"


@dataclass(frozen=True)
class GuidanceInterval:
    """The part of the way from noise to picture on which guidance counts.

    Args:
        start, end: shares of the model's noise schedule, 0 at its last timestep, which is noise, and 1 at its first, which is the picture.
    """

    start: float
    end: float

    def contains(self, timestep: float, training_steps: int) -> bool:
        """Whether guidance counts at a timestep of a model trained on so many."""
        share = min(max(1.0 - timestep / training_steps, 0.0), 1.0)
        return self.start <= share <= self.end

    def __str__(self) -> str:
        return f"{self.start:g}:{self.end:g}"


def parse_interval(given: Any) -> tuple[float, float]:
    """`START:END`, or a pair of numbers.

    Raises:
        UsageError: it is neither, or not 0 <= START < END <= 1.
    """
    parts = given.split(":") if isinstance(given, str) else given
    try:
        start, end = (float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        start = end = math.nan
    if not 0.0 <= start < end <= 1.0:
        raise UsageError(mismatch(OPTION, "START:END with 0 <= START < END <= 1", repr(given), "0.1:0.9 leaves out both ends"))
    return start, end


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the prompt counts, and where.

    Args:
        scale: g of `u + g (c - u)`.
        interval: where it counts; elsewhere the prompt counts plainly, in one call. None for everywhere.
        training_steps: timesteps of the model.
    """

    scale: float
    interval: GuidanceInterval | None = None
    training_steps: int = 1000

    @classmethod
    def of(cls, spec: TaskSpec, training_steps: int) -> Guidance:
        """That of a task, as a caller may have changed it."""
        interval = None if spec.guidance_interval is msgspec.UNSET else GuidanceInterval(*spec.guidance_interval)
        return cls(scale=spec.guidance, interval=interval, training_steps=training_steps)

    def counts_at(self, timestep: float) -> bool:
        """Whether this timestep is guided."""
        return self.interval is None or self.interval.contains(timestep, self.training_steps)


def is_guided(spec: TaskSpec) -> bool:
    """Whether a run without the prompt is needed, as in diffusers: guidance above 1, and that of the picture, if any, at 1 or more."""
    return spec.guidance > 1.0 and (spec.image_guidance is msgspec.UNSET or spec.image_guidance >= 1.0)


@dataclass(frozen=True)
class PictureGuidance:
    """Guidance away from what the network makes without the given picture: `u + g (c - i) + s (i - u)`.

    Source: Brooks et al. 2023, Eq. 3; u sees neither picture nor prompt, i the picture, c both.

    Args:
        scale: s.
        without: the channels beside the latent where there is no picture.
    """

    scale: float
    without: Float


def guided_network(
    session: Runnable,
    beside: Float | None,
    texts: tuple[Float, Float | None],
    guidance: Guidance,
    picture: PictureGuidance | None = None,
    reuse: DeepReuse | None = None,
) -> Network:
    """The network with classifier-free guidance, `u + g (c - u)`; the condition channels are the same on both sides.

    Args:
        session: the U-Net; all sides run at once where its batch axis is dynamic.
        beside: what follows the latent in the sample, float32 `(1, k, h, w)`, None for a graph without.
        texts: hidden states float32 `(1, L, D)` of the prompt, and of the negative prompt; None turns guidance off.
        picture: a third side, without the given picture.
        reuse: of the U-Net's deep features, by a graph whose batch axis is not dynamic; None computes every call whole.
    """
    positive, negative = texts
    batched = session.inputs["sample"][0] is None and session.inputs["encoder_hidden_states"][0] is None
    scale, picture_scale = np.float32(guidance.scale), np.float32(picture.scale if picture else 1.0)
    plain = [(beside, positive)]
    guided = plain if negative is None else [(beside, negative), *plain]
    if picture is not None and negative is not None:
        guided = [(picture.without, negative), *guided]

    def network(x: NDArray[Any], t: float) -> NDArray[Any]:
        if reuse is not None:
            reuse.next_call()
        sides = guided if guidance.counts_at(t) else plain
        latent = np.asarray(x, np.float32)
        timestep = np.array([t], np.float32)
        samples = [latent if extra is None else np.concatenate([latent, extra], axis=1) for extra, _ in sides]
        if batched and len(sides) > 1:
            calls = [(np.concatenate(samples), np.concatenate([text for _, text in sides]))]
        else:
            calls = [(sample, text) for sample, (_, text) in zip(samples, sides, strict=True)]
        inputs = [{"sample": sample, "timestep": timestep, "encoder_hidden_states": text} for sample, text in calls]
        if reuse is None:
            outputs = [session.run(call) for call in inputs]
        else:
            outputs = [reuse.run(len(inputs) - number, call) for number, call in enumerate(inputs, 1)]
        if len(outputs) < len(sides):
            outputs = list(np.split(outputs[0], len(sides)))
        return _combined(outputs, scale, picture_scale)

    return network


def _combined(outputs: list[Float], scale: np.float32, picture_scale: np.float32) -> Float:
    """One output from those of one, two or three sides."""
    match outputs:
        case [c]:
            return c
        case [u, c]:
            return np.asarray(u + scale * (c - u))
        case [u, i, c]:
            return np.asarray(u + scale * (c - i) + picture_scale * (i - u))
        case _:
            raise ValueError(f"{len(outputs)} sides")
