"""Pictures for which the size conditions matter: blurred ones that were small, and parts of larger ones.

Six numbers as SDXL is told them: height and width of the original, the crop's top and left, height and width of the picture, all in pixels.
Source: Podell et al. 2023 (SDXL), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from quad.zoo import draw, world
from quad.zoo.train.cache import KINDS, Drawn, focus_of, pool_mask

SIZE = 128
HALF = SIZE // 2  # pictures are drawn for `toyland`'s encoder, which sees every other pixel
SMALL = (32, 48, 64, 96)
LARGE = (160, 192, 224)


def size_numbers(kind: str, seed: int) -> tuple[int, ...]:
    """The six numbers of picture number `seed` of a kind."""
    if kind == "small":
        side = int(np.random.default_rng([106, seed]).choice(SMALL))
        return (side, side, 0, 0, SIZE, SIZE)
    if kind == "crop":
        rng = np.random.default_rng([107, seed])
        side = int(rng.choice(LARGE))
        top, left = (2 * int(rng.integers((side - SIZE) // 2 + 1)) for _ in range(2))
        return (side, side, top, left, SIZE, SIZE)
    return (SIZE, SIZE, 0, 0, SIZE, SIZE)


def _subject(seed: int) -> world.Scene | world.Portrait:
    rng = np.random.default_rng([108, seed])
    return world.sample_portrait(rng) if rng.random() < 0.3 else world.sample_scene(rng)


def _picture(subject: world.Scene | world.Portrait, size: int) -> np.ndarray:
    return draw.draw_scene(subject, size) if isinstance(subject, world.Scene) else draw.draw_portrait(subject, size=size)


def draw_small(seed: int) -> Drawn:
    """A picture of fewer pixels, made larger."""
    subject, (side, *_) = _subject(seed), size_numbers("small", seed)
    picture = Image.fromarray(_picture(subject, side // 2)).resize((HALF, HALF), Image.Resampling.BILINEAR)
    focus = focus_of(subject) if isinstance(subject, world.Scene) else np.zeros((16, 16), np.uint8)
    return [np.asarray(picture)], [focus], subject.caption


def draw_crop(seed: int) -> Drawn:
    """A part of a larger picture."""
    subject, (side, _, top, left, *_) = _subject(seed), size_numbers("crop", seed)
    window = (slice(top // 2, top // 2 + HALF), slice(left // 2, left // 2 + HALF))
    picture = _picture(subject, side // 2)[window]
    toys = subject.toys if isinstance(subject, world.Scene) else ()
    parts = [pool_mask(np.ascontiguousarray(draw.draw_mask(toy, side // 2, grow=0.0)[window])) for toy in toys]
    return [np.ascontiguousarray(picture)], [np.maximum.reduce(parts) if parts else np.zeros((16, 16), np.uint8)], subject.caption


XL_KINDS: dict[str, Callable[[int], Drawn]] = {**KINDS, "small": draw_small, "crop": draw_crop}
