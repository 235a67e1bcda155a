"""Inputs of the autoencoder in a bundle's vectors. A build tries its graphs on the same ones, so that one run is enough for both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def drawn_picture(rows: int, columns: int) -> NDArray[np.uint8]:
    """A picture `(rows, columns, 3)`: red grows to the right, green downwards, and a blue disc in the middle."""
    y, x = np.mgrid[0:rows, 0:columns]
    channels = (255 * x // max(columns - 1, 1), 255 * y // max(rows - 1, 1), 255 * disc(rows, columns))
    return np.stack(channels, axis=-1).astype(np.uint8)


def disc(rows: int, columns: int) -> NDArray[np.bool_]:
    """The middle quarter of a plane."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.asarray(np.hypot(y / rows - 0.5, x / columns - 0.5) < 0.25)


def encoder_image(rows: int, columns: int) -> NDArray[np.float32]:
    """`drawn_picture` as the encoder reads it, `(1, 3, rows, columns)` in [-1, 1]."""
    return np.ascontiguousarray(drawn_picture(rows, columns).transpose(2, 0, 1)[None] / np.float32(127.5) - 1)


def decoder_latent(shape: Sequence[int]) -> NDArray[np.float32]:
    """Noise of a shape."""
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)
