"""Pixel metrics, by their right names: NumPy only. Source: docs/method.md section 7.

Pictures are `(H, W, 3)`, uint8 0..255 or float 0..1; the data range of every figure is 1. Masks are `(H, W)`, true inside.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, mismatch

Picture = NDArray[np.uint8] | NDArray[np.floating]
Mask = NDArray[np.bool_] | NDArray[np.uint8]

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
PSNR_CAP_DB = 100.0
EDGE_THRESHOLD = 0.055
EDGE_RADIUS_PX = 2
INK_LEVEL = 0.6
GROUND_DISTANCE = 0.16
GROUND_SPREAD = 0.035
GROUND_SHARE = 0.35
WHITE_LEVEL = 0.75
OUTLINE_SHARE = 0.8
OUTLINE_DEPTH_PX = 2


def unit(picture: Picture) -> NDArray[np.float64]:
    """A picture as float64 in 0..1."""
    x: NDArray[np.float64] = picture.astype(np.float64)
    return x / 255.0 if picture.dtype == np.uint8 else x


def _pair(a: Picture, b: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if a.shape != b.shape:
        raise InputError(mismatch("metric", f"two pictures of one shape {a.shape}", b.shape, "resize one of them first"))
    return unit(a), unit(b)


def decibel(mse: float) -> float:
    """`-10 log10(mse)` for data range 1, capped at 100 dB (equal pictures)."""
    return PSNR_CAP_DB if mse <= 10 ** (-PSNR_CAP_DB / 10) else -10 * math.log10(mse)


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio of one picture, dB."""
    x, y = _pair(a, b)
    return decibel(float(np.mean((x - y) ** 2)))


def psnr_inside(a: Picture, b: Picture, mask: Mask) -> float:
    """PSNR over the pixels inside the mask only, dB.

    Raises:
        InputError: the mask is empty.
    """
    x, y = _pair(a, b)
    inside = mask.astype(np.bool_)
    if not inside.any():
        raise InputError(mismatch("mask", "at least one pixel inside", "an empty mask", "give a mask that marks something"))
    return decibel(float(np.mean((x[inside] - y[inside]) ** 2)))


@lru_cache(maxsize=8)
def _window(n: int) -> NDArray[np.float64]:
    """The Gaussian as a banded matrix `(n - 10, n)`: row i weighs pixels i .. i + 10, so smoothing is a matrix product."""
    x = np.arange(WINDOW) - WINDOW // 2
    g = np.exp(-(x**2) / (2 * SIGMA**2))
    g /= g.sum()
    band = np.zeros((n - WINDOW + 1, n))
    for i in range(len(band)):
        band[i, i : i + WINDOW] = g
    return band


def _smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Separable Gaussian, valid positions only: `(H, W, C)` to `(H-10, W-10, C)`."""
    smooth: NDArray[np.float64] = np.moveaxis(_window(x.shape[0]) @ np.moveaxis(x, 2, 0) @ _window(x.shape[1]).T, 0, 2)
    return smooth


def ssim(a: Picture, b: Picture) -> float:
    """Structural similarity: 11x11 Gaussian, sigma 1.5, data range 1, valid positions only, mean over channels.

    Source: Wang et al. 2004, Eq. 13, K1 = 0.01, K2 = 0.03, population variances.
    """
    x, y = _pair(a, b)
    if min(x.shape[:2]) < WINDOW:
        raise InputError(mismatch("ssim", f"at least {WINDOW} pixels a side", x.shape, "use larger pictures"))
    mx, my = _smooth(x), _smooth(y)
    vx, vy, cov = _smooth(x * x) - mx**2, _smooth(y * y) - my**2, _smooth(x * y) - mx * my
    c1, c2 = K1**2, K2**2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(score.mean())


def grow(mask: Mask, radius_px: int) -> NDArray[np.bool_]:
    """All pixels within `radius_px` (Euclidean) of the mask."""
    inside = mask.astype(np.bool_)
    height, width = inside.shape
    padded = np.pad(inside, radius_px)
    grown: NDArray[np.bool_] = np.zeros_like(inside)
    for dy in range(-radius_px, radius_px + 1):
        for dx in range(-radius_px, radius_px + 1):
            if dx * dx + dy * dy <= radius_px * radius_px:
                top, left = radius_px + dy, radius_px + dx
                grown |= padded[top : top + height, left : left + width]
    return grown


def nearest_fill(picture: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """Baseline for removal: every pixel inside takes its nearest known pixel's colour (all inside: unchanged)."""
    inside = mask.astype(np.bool_)
    edge = np.argwhere(grow(inside, 1) & ~inside)
    if not len(edge):
        return picture.copy()
    holes = np.argwhere(inside)
    distance = ((holes[:, None, :] - edge[None, :, :]) ** 2).sum(-1)
    nearest = edge[distance.argmin(1)]
    filled = picture.copy()
    filled[holes[:, 0], holes[:, 1]] = picture[nearest[:, 0], nearest[:, 1]]
    return filled


def ring_fill(picture: NDArray[np.uint8], mask: Mask, width_px: int = 3) -> NDArray[np.uint8]:
    """Baseline for removal: the inside takes the mean colour of a ring of `width_px` around it (all inside: unchanged)."""
    inside = mask.astype(np.bool_)
    ring = grow(inside, width_px) & ~inside
    filled = picture.copy()
    if ring.any():
        filled[inside] = np.round(picture[ring].mean(0)).astype(np.uint8)
    return filled


def edges(picture: Picture, threshold: float = EDGE_THRESHOLD) -> NDArray[np.bool_]:
    """Where colour changes: the largest channel's central-difference gradient is above `threshold` a pixel."""
    x = np.pad(unit(picture), ((1, 1), (1, 1), (0, 0)), mode="edge")
    dy = (x[2:, 1:-1] - x[:-2, 1:-1]) / 2
    dx = (x[1:-1, 2:] - x[1:-1, :-2]) / 2
    return np.asarray(np.sqrt(dx**2 + dy**2).max(-1) > threshold)


def edge_agreement(picture: Picture, drawing: Picture, radius_px: int = EDGE_RADIUS_PX, threshold: float = EDGE_THRESHOLD) -> float:
    """Share of the drawing's ink pixels with an edge of `picture` within `radius_px`; 1 for a drawing without ink."""
    ink = unit(drawing).mean(-1) < INK_LEVEL
    if not ink.any():
        return 1.0
    return float(grow(edges(picture, threshold), radius_px)[ink].mean())


def border_colour(picture: Picture, width_px: int = 2) -> NDArray[np.float64]:
    """Median colour of the picture's frame, 0..1."""
    x = unit(picture)
    frame = np.ones(x.shape[:2], dtype=bool)
    frame[width_px:-width_px, width_px:-width_px] = False
    return np.asarray(np.median(x[frame], axis=0))


def corner_colour(picture: Picture, size_px: int = 6) -> NDArray[np.float64]:
    """Median colour of the two upper corners, 0..1: a portrait's background."""
    x = unit(picture)[:size_px]
    corners = np.concatenate([x[:, :size_px].reshape(-1, 3), x[:, -size_px:].reshape(-1, 3)])
    return np.asarray(np.median(corners, axis=0))


def _joined_to_frame(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of a region that is connected to the picture's frame."""
    connected = region.copy()
    connected[1:-1, 1:-1] = False
    while True:
        wider = grow(connected, 1) & region
        if wider.sum() == connected.sum():
            return connected
        connected = wider


def is_sticker(picture: Picture) -> bool:
    """The pixel test: one flat ground, and white wherever it meets the object."""
    x = unit(picture)
    ground = _joined_to_frame(np.linalg.norm(x - border_colour(x), axis=-1) < GROUND_DISTANCE)
    if not GROUND_SHARE < ground.mean() < 1 or x[ground].std(axis=0).max() > GROUND_SPREAD:
        return False
    near = grow(ground, OUTLINE_DEPTH_PX) & ~grow(ground, OUTLINE_DEPTH_PX - 1)
    return bool(near.any() and (x[near].min(axis=-1) > WHITE_LEVEL).mean() >= OUTLINE_SHARE)
