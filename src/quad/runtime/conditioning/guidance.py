"""The U-Net as a sampler sees it: one function of (latent, timestep)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UsageError, VerificationError, mismatch
from quad.core.manifest import Beside, BundleManifest, LatentSpec
from quad.runtime.engines.engine import Runnable

Float = NDArray[np.float32]
Network = Callable[[NDArray[Any], float], NDArray[Any]]


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


def beside_of(session: Runnable, latent: LatentSpec) -> tuple[Beside, ...]:
    """What follows the latent in the graph's `sample`.

    Raises:
        VerificationError: the graph has another number of channels.
    """
    shape = session.inputs.get("sample", ())
    channels = shape[1] if len(shape) == 4 else None
    known = layouts(latent)
    if channels not in known:
        expected = f"sample with {' or '.join(str(number) for number in known)} channels"
        raise VerificationError(mismatch("graph unet", expected, f"shape {shape}", "build the bundle again"))
    return known[channels]


def layouts(latent: LatentSpec) -> dict[int, tuple[Beside, ...]]:
    """Channels that a graph's `sample` may have -> what follows the latent in them."""
    guesses: tuple[tuple[Beside, ...], ...] = ((), ("condition", "mask"))
    width = {"mask": 1, "condition": latent.channels, "raw-condition": latent.channels}
    some = guesses if latent.beside is msgspec.UNSET else (latent.beside,)
    return {latent.channels + sum(width[part] for part in one): one for one in some}


def guided_network(
    session: Runnable, beside: Float | None, texts: tuple[Float, Float | None], guidance: float, picture: PictureGuidance | None = None
) -> Network:
    """The network with classifier-free guidance, `u + g (c - u)`; the condition channels are the same on both sides.

    Args:
        session: the U-Net; all sides run at once where its batch axis is dynamic.
        beside: what follows the latent in the sample, float32 `(1, k, h, w)`, None for a graph without.
        texts: hidden states float32 `(1, L, D)` of the prompt, and of the negative prompt; None turns guidance off.
        guidance: g.
        picture: a third side, without the given picture.
    """
    wanted, unwanted = texts
    batched = session.inputs["sample"][0] is None and session.inputs["encoder_hidden_states"][0] is None
    scale = np.float32(guidance)
    sides = [(beside, wanted)] if unwanted is None else [(beside, unwanted), (beside, wanted)]
    if picture is not None and unwanted is not None:
        sides = [(picture.without, unwanted), *sides]

    def network(x: NDArray[Any], t: float) -> NDArray[Any]:
        latent = np.asarray(x, np.float32)
        timestep = np.array([t], np.float32)
        samples = [latent if extra is None else np.concatenate([latent, extra], axis=1) for extra, _ in sides]
        if batched and len(sides) > 1:
            together = _once(session, np.concatenate(samples), timestep, np.concatenate([text for _, text in sides]))
            outputs = list(np.split(together, len(sides)))
        else:
            outputs = [_once(session, sample, timestep, text) for sample, (_, text) in zip(samples, sides, strict=True)]
        return _combined(outputs, scale, np.float32(picture.scale if picture else 1.0))

    return network


def _once(session: Runnable, sample: Float, timestep: Float, text: Float) -> Float:
    output: Float = session.run({"sample": sample, "timestep": timestep, "encoder_hidden_states": text})
    return output


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


def draw_noise(seed: int, latents: Float | None, manifest: BundleManifest) -> tuple[np.random.Generator, Float]:
    """The generator of a call and its first noise, float32 `(1, c, h, w)`; `latents` takes the noise's place.

    Raises:
        UsageError: a negative seed.
        InputError: latents of another shape, or not finite.
    """
    if seed < 0:
        raise UsageError(mismatch("seed", "0 or more", seed, "choose another"))
    side = manifest.size // manifest.latent.factor
    shape = (1, manifest.latent.channels, side, side)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape).astype(np.float32)
    if latents is None:
        return rng, noise
    if latents.shape != shape or not np.isfinite(latents).all():
        raise InputError(mismatch("latents", f"finite float32 {shape}", f"shape {latents.shape}", "draw them anew"))
    return rng, np.asarray(latents, np.float32)
