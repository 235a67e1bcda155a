"""The U-Net as a sampler sees it: one function of (latent, timestep)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UsageError, VerificationError, mismatch
from quad.core.manifest import BundleManifest
from quad.runtime.bundle import Bundle
from quad.runtime.engine import Session

Float = NDArray[np.float32]
Network = Callable[[NDArray[Any], float], NDArray[Any]]


def sample_channels(session: Session, latent_channels: int) -> int:
    """Channels of the graph's `sample`: the latent alone, or latent, condition latent and mask.

    Raises:
        VerificationError: another number.
    """
    shape = session.inputs.get("sample", ())
    channels = shape[1] if len(shape) == 4 else None
    known = (latent_channels, 2 * latent_channels + 1)
    if channels not in known:
        expected = f"sample with {known[0]} or {known[1]} channels"
        raise VerificationError(mismatch("graph unet", expected, f"shape {shape}", "build the bundle again"))
    return int(channels or 0)


def guided_network(session: Session, beside: Float | None, texts: tuple[Float, Float | None], guidance: float) -> Network:
    """The network with classifier-free guidance, `u + g (c - u)`; the condition channels are the same on both sides.

    Args:
        session: the U-Net; both sides run at once where its batch axis is dynamic.
        beside: condition latent and mask, float32 `(1, c + 1, h, w)`, None for a graph without.
        texts: hidden states float32 `(1, L, D)` of the prompt, and of the negative prompt; None turns guidance off.
        guidance: g.
    """
    wanted, unwanted = texts
    batched = session.inputs["sample"][0] is None and session.inputs["encoder_hidden_states"][0] is None
    scale = np.float32(guidance)

    def once(sample: Float, timestep: Float, text: Float) -> Float:
        output: Float = session.run({"sample": sample, "timestep": timestep, "encoder_hidden_states": text})
        return output

    def network(x: NDArray[Any], t: float) -> NDArray[Any]:
        latent = np.asarray(x, np.float32)
        sample = latent if beside is None else np.concatenate([latent, beside], axis=1)
        timestep = np.array([t], np.float32)
        if unwanted is None:
            return once(sample, timestep, wanted)
        if batched:
            both = once(np.repeat(sample, 2, axis=0), timestep, np.concatenate([unwanted, wanted]))
            u, c = both[:1], both[1:]
        else:
            u, c = once(sample, timestep, unwanted), once(sample, timestep, wanted)
        return u + scale * (c - u)

    return network


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


def slot_inputs(bundle: Bundle, sessions: Mapping[str, Session]) -> dict[str, list[str]]:
    """Names of each graph's slot inputs.

    Raises:
        VerificationError: a graph lacks one, or has it in another shape.
    """
    names: dict[str, list[str]] = {}
    for slot in bundle.slots.slots:
        for name, shape in ((slot.a_name, slot.a_shape), (slot.b_name, slot.b_shape)):
            session = sessions.get(slot.component)
            found = None if session is None else session.inputs.get(name)
            if found != shape:
                raise VerificationError(mismatch(f"graph {slot.component}, input {name}", shape, found, "build the bundle again"))
            names.setdefault(slot.component, []).append(name)
    return names
