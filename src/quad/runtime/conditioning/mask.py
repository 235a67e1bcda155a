"""The user's mask: read, fitted, grown, and feathered for pasting back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from quad.core.errors import InputError, UsageError, mismatch
from quad.runtime.conditioning.picture import PictureSource, open_picture, to_rgb

INSIDE, OUTSIDE = 128, 0
MAX_GROW_PX = 256


def read_mask(source: PictureSource, width: int, height: int) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The mask as bool `(height, width)`: inside where it is at least half white.

    Returns:
        The mask, and a note where it had another size than the picture.

    Raises:
        InputError: it is no picture, or nothing of it is white.
    """
    rgb, _ = to_rgb(open_picture(source, "mask"), OUTSIDE)  # where nothing was painted, nothing is meant
    inside = rgb.max(axis=2) >= INSIDE
    notes: tuple[str, ...] = ()
    if inside.shape != (height, width):
        notes = (f"mask: resized from {inside.shape[1]}x{inside.shape[0]} to the picture's {width}x{height}",)
        plane = Image.fromarray(inside.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        grown = np.asarray(plane) >= INSIDE
        # A thin mask may fall below half a pixel: what was marked must not vanish.
        inside = grown if grown.any() else np.asarray(plane) > 0
    if not inside.any():
        raise InputError(mismatch("mask", "white where something is to be removed", "an empty mask", "paint over the object"))
    return inside, notes


def grow_steps(mask: NDArray[np.bool_], grow_px: int) -> list[NDArray[np.bool_]]:
    """The mask, and the mask grown by 1, 2, ... `grow_px` pixels to every side.

    Raises:
        UsageError: `grow_px` is negative or absurd.
    """
    if not 0 <= grow_px <= MAX_GROW_PX:
        raise UsageError(mismatch("mask_grow", f"0 to {MAX_GROW_PX} pixels", grow_px, "choose one in that range"))
    steps = [mask]
    for _ in range(grow_px):
        plane = Image.fromarray(steps[-1].astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
        steps.append(np.asarray(plane) > 0)
    return steps


def feather(steps: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Weight of the new picture: 1 in the user's mask, falling to 0 where the grown mask ends."""
    inner = steps[:-1] or steps
    covered = np.zeros(inner[0].shape, np.float32)  # by how many of them: whole numbers, so their sum is exact
    for mask in inner:
        covered += mask
    return covered / np.float32(len(inner))


def pool_mask(mask: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """The mask max-pooled to latent resolution, float32 `(1, 1, h, w)`."""
    h, w = mask.shape[0] // factor, mask.shape[1] // factor
    pooled: NDArray[np.bool_] = mask.reshape(h, factor, w, factor).max(axis=(1, 3))
    return pooled.astype(np.float32)[None, None]


def sample_mask(mask: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """The mask at latent resolution, every `factor`-th pixel, float32 `(1, 1, h, w)`: the nearest pixel, as diffusers takes it."""
    return np.ascontiguousarray(mask[::factor, ::factor]).astype(np.float32)[None, None]
