"""A coarse look at a picture on its way: each latent pixel becomes one colour, by a linear map that the build has fitted to its decoder."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import UsageError, VerificationError, mismatch
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import BundleManifest, LatentPreview
from quad.core.picture_size import PictureSize


def preview_picture(preview: LatentPreview, latent: NDArray[Any], factor: int) -> Image.Image:
    """The picture that a latent `(1, c, h, w)` is on its way to, `factor` times as large as the latent."""
    weights, bias = np.asarray(preview.weights), np.asarray(preview.bias)
    colours = np.tensordot(latent[0].astype(np.float64), weights, axes=(0, 1)) + bias
    pixels = np.rint(np.clip((colours + 1) * 127.5, 0, 255)).astype(np.uint8)
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.BILINEAR)


def require_tiny_decoder(manifest: BundleManifest) -> None:
    """Refuse a bundle without one.

    Raises:
        UsageError: it has none.
    """
    if TINY_DECODER not in manifest.components:
        expected = "a bundle of quad build --tiny-decoder"
        raise UsageError(mismatch("tiny_decoder", expected, "one without", "build with --tiny-decoder, or leave it out"))


def latent_size(manifest: BundleManifest, latents: NDArray[Any]) -> PictureSize:
    """Of the picture that latents `(1, c, h, w)` are of.

    Raises:
        UsageError: they have another shape, or the bundle has no graph for that size.
    """
    channels, factor = manifest.latent.channels, manifest.latent.factor
    if latents.ndim != 4 or latents.shape[:2] != (1, channels):
        raise UsageError(mismatch("preview", f"latents (1, {channels}, h, w)", f"shape {latents.shape}", "give those of a callback"))
    size = PictureSize(latents.shape[3] * factor, latents.shape[2] * factor)
    if size not in manifest.picture_sizes:
        expected = f"latents of one of the bundle's sizes, {', '.join(map(str, manifest.picture_sizes))}"
        raise UsageError(mismatch("preview", expected, size, "give those of a callback"))
    return size


def bundle_preview(manifest: BundleManifest, latents: NDArray[Any], factor: int | None = None) -> Image.Image:
    """`preview_picture` with the map that a bundle has.

    Args:
        factor: None for the size of the picture itself.

    Raises:
        UsageError: it has none, or latents of another shape. VerificationError: one for another latent.
    """
    preview, channels = manifest.preview, manifest.latent.channels
    if preview is msgspec.UNSET:
        raise UsageError(mismatch("preview", "a bundle with colours for its latents", "none: an older build", "build it again"))
    if any(len(row) != channels for row in preview.weights):
        raise VerificationError(mismatch("bundle.json, preview", f"{channels} weights a colour", "others", "build the bundle again"))
    if latents.ndim != 4 or latents.shape[:2] != (1, channels):
        raise UsageError(mismatch("preview", f"latents (1, {channels}, h, w)", f"shape {latents.shape}", "give those of a callback"))
    return preview_picture(preview, latents, manifest.latent.factor if factor is None else factor)
