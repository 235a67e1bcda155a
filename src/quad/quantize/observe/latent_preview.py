"""The colours of a latent: a linear map from latent pixels to what the decoder makes of them, fitted on calibration pictures.

min over W, b of sum || W z + b - mean colour of the decoded pixels under z ||^2, over the latent pixels z of encoded pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from quad.core.manifest import LatentPreview
from quad.core.picture_size import PictureSize
from quad.core.slots import SlotTable
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.side_by_side import side_by_side
from quad.quantize.observe.torch_session import torch_sessions
from quad.runtime.conditioning.picture import PictureSource, open_picture, to_rgb

PICTURES = 2  # of thousands of latent pixels each
DIGITS = 6


def fit_preview(
    base: Base, networks: Mapping[str, nn.Module], table: SlotTable, samples: Sequence[CalibrationSample]
) -> LatentPreview | None:
    """The map for a base's latents; None where no sample has a picture."""
    sessions = torch_sessions(base, networks, table)
    pictures = [sample.image for sample in samples if sample.image is not None][:PICTURES]
    if not pictures:
        return None

    def there_and_back(picture: PictureSource) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        latent = sessions["vae_encoder"].run({"image": model_picture(picture, base.picture_size)})
        decoded = sessions["vae_decoder"].run({"latent": latent})
        return _pixels(latent), _pixels(_pooled(decoded, base.latent.factor))

    z, colours = map(np.concatenate, zip(*side_by_side(there_and_back, pictures), strict=True))
    solved, *_ = np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), colours, rcond=None)
    red, green, blue = (tuple(float(f"{value:.{DIGITS}g}") for value in column) for column in solved.T)
    return LatentPreview((red[:-1], green[:-1], blue[:-1]), (red[-1], green[-1], blue[-1]))


def model_picture(source: PictureSource, size: PictureSize) -> NDArray[np.float32]:
    """A picture as the encoder reads it, `(1, 3, H, W)` in [-1, 1]."""
    pixels, _ = to_rgb(open_picture(source))
    scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), np.float32)
    return (scaled / 127.5 - 1).transpose(2, 0, 1)[None]


def _pixels(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(1, c, h, w)` as `(h w, c)`."""
    return np.asarray(maps[0].reshape(maps.shape[1], -1).T, np.float64)


def _pooled(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means over squares of `factor` pixels."""
    _, channels, height, width = image.shape
    squares = image.reshape(1, channels, height // factor, factor, width // factor, factor)
    return np.asarray(squares.mean(axis=(3, 5)), np.float32)
