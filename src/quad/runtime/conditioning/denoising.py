"""What the U-Net reads, and where denoising begins: one way for the device, for calibration and for the OLSS solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import VerificationError, mismatch
from quad.core.manifest import Beside, LatentSpec, TaskSpec
from quad.runtime.conditioning.condition import Condition
from quad.runtime.conditioning.guidance import Float, Network, PictureGuidance, beside_of, guided_network
from quad.runtime.engines.engine import Runnable
from quad.runtime.samplers import Start, add_noise

Encode = Callable[[Float], Float]  # picture `(1, 3, S, S)` in [-1, 1] to model latent `(1, c, h, w)`


@dataclass(frozen=True)
class Denoising:
    """A guided network, and where to begin; None for noise alone."""

    network: Network
    start: Start | None


@dataclass(frozen=True)
class Inputs:
    """What one call denoises from.

    Args:
        texts: hidden states `(1, L, D)` of the prompt, and of the negative prompt; None where the task is not guided.
        noise: the first noise `(1, c, h, w)`; blending noises the picture with it too.
        encode: the VAE encoder.
    """

    condition: Condition
    texts: tuple[Float, Float | None]
    noise: Float
    encode: Encode


def plan_denoising(unet: Runnable, latent: LatentSpec, spec: TaskSpec, inputs: Inputs) -> Denoising:
    """Everything about one call that does not change from step to step.

    Args:
        spec: of the task, with what the caller chose for this call.

    Raises:
        VerificationError: the graph has not the channels that its bundle says.
    """
    names = beside_of(unet, latent)
    condition = inputs.condition
    encoded = inputs.encode(condition.image) if condition.image is not None and set(names) - {"mask"} else None
    beside = _beside(names, latent, encoded, condition.mask)
    picture = None
    if spec.image_guidance is not msgspec.UNSET:
        picture = _picture_guidance(names, latent, condition, spec.image_guidance)
    network = guided_network(unet, beside, inputs.texts, spec.guidance, picture)
    return Denoising(network, _start(spec, inputs))


def is_guided(spec: TaskSpec) -> bool:
    """Whether a run without the prompt is needed."""
    return spec.guidance != 1.0 or spec.image_guidance not in (msgspec.UNSET, 1.0)


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


def _start(spec: TaskSpec, inputs: Inputs) -> Start | None:
    """Where the walk begins, and what holds it to the given picture; as diffusers, all of a mask's inside begins at noise."""
    condition, noise = inputs.condition, inputs.noise
    if condition.picture is None:
        return None
    x0 = inputs.encode(condition.picture)
    strength = 1.0 if spec.strength is msgspec.UNSET else spec.strength
    from_noise = spec.strength is msgspec.UNSET or (spec.mask == "input" and strength == 1.0)
    inside = condition.mask.astype(np.float64)

    def keep(x: NDArray[np.float64], abar: float) -> NDArray[Any]:
        return np.asarray((1 - inside) * add_noise(x0, noise, abar) + inside * x)

    return Start(None if from_noise else x0, strength, keep if spec.blend else None)
