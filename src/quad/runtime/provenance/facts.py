"""Facts about how a picture was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quad.runtime.adapters.block_weights import Weight


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """One picture, by what a person needs to make it again.

    Args:
        sampler: `KIND:STEPS`, or `KIND-karras:STEPS`.
        guidance_interval: shares of the noise schedule between which guidance counted; None for all of it.
        reuse: one call of the U-Net of so many was whole.
        tiny_decoder: the picture came of the small decoder.
        seed: None where the noise was brought along.
        size: width and height, pixels.
        model: the bundle's name, and its own digest.
        adapters: name -> weight, as used.
        strength: how much of the given picture was made anew; None where none is read.
        edited: it began at a picture, which is another source than a model.
    """

    prompt: str = ""
    negative_prompt: str = ""
    sampler: str
    guidance: float
    seed: int | None
    size: tuple[int, int]
    model: tuple[str, str]
    adapters: Mapping[str, Weight] = field(default_factory=dict)
    strength: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: int = 1
    tiny_decoder: bool = False
    edited: bool = False
