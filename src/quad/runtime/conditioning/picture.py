"""Any input picture, and the picture of its own size that the graph reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import InputError, mismatch
from quad.core.picture_size import PictureSize
from quad.runtime.conditioning.picture_file import bands, decode_picture, grey_top

PictureSource = Image.Image | NDArray[Any] | str | Path
MAX_BYTES = 512 * 2**20
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I", "F")


def open_picture(source: PictureSource, where: str = "image") -> Image.Image:
    """A picture as given by the user, wholly read and turned upright; its mode is as it comes.

    Args:
        source: PIL picture, array `(H, W)` or `(H, W, 1|3|4)` of uint8, bool or float in [0, 1], or a file's path.
        where: what to call it in a message.

    Raises:
        InputError: it is no picture, is damaged, or too large.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, where)
    if not isinstance(source, str | Path):
        raise InputError(mismatch(where, "a picture or a file's path", type(source).__name__, "open it with PIL first"))
    return decode_picture(picture_bytes(Path(source), where), f"{where} {source}")


def picture_bytes(path: Path, where: str) -> bytes:
    """The bytes of a plain file: a pipe may never end, a device never does.

    Raises:
        InputError: it is none, cannot be read, or is too large.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(mismatch(f"{where} {path}", "a picture file", "no plain file", "check the path"))
        if path.stat().st_size > MAX_BYTES:
            raise InputError(mismatch(f"{where} {path}", f"at most {MAX_BYTES >> 20} MiB", "more", "make it smaller"))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or "none"
        raise InputError(mismatch(f"{where} {path}", "a picture file", reason, "check the path")) from error


def _from_array(array: NDArray[Any], where: str) -> Image.Image:
    flat = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if 0 in flat.shape or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[-1] in (3, 4))):
        raise InputError(mismatch(where, "an array (H, W) or (H, W, 3)", f"shape {array.shape}", "transpose or slice it"))
    if flat.dtype == np.bool_:
        flat = flat.astype(np.uint8) * 255
    elif np.issubdtype(flat.dtype, np.floating):
        if not (np.isfinite(flat).all() and flat.min() >= 0 and flat.max() <= 1):
            raise InputError(mismatch(where, "floats in [0, 1]", f"{flat.min()} to {flat.max()}", "scale it"))
        flat = np.rint(flat * 255).astype(np.uint8)
    if flat.dtype != np.uint8:
        raise InputError(mismatch(where, "uint8, bool or float", str(array.dtype), "convert it"))
    return Image.fromarray(np.ascontiguousarray(flat))


def to_rgb(picture: Image.Image, ground: int = 255) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The picture as uint8 `(H, W, 3)`; transparent parts are laid on a grey, white by default, which a note says."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    if picture.mode in _WIDE_MODES:
        top = grey_top(np.max([np.asarray(band).max() for _, band in bands(picture)]))
        for row, band in bands(picture):
            level = np.rint(np.clip(np.asarray(band, np.float64) / top, 0, 1) * 255)
            pixels[row : row + band.height] = level[..., None]
        return pixels, ()
    is_clear = False
    for row, band in bands(picture):
        if band.has_transparency_data:
            layered = band.convert("RGBA")
            is_clear = is_clear or np.asarray(layered)[..., 3].min() < 255
            band = Image.alpha_composite(Image.new("RGBA", layered.size, (ground, ground, ground, 255)), layered)
        pixels[row : row + band.height] = np.asarray(band.convert("RGB"))
    return pixels, ("image: its transparent parts were laid on white",) if is_clear else ()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture lies in the graph's; boxes are (left, top, right, bottom) in pixels.

    Args:
        source: the part of the picture that is read.
        target: where it lies in the graph's picture; the rest repeats its edge.
        width, height: of the whole picture.
        size: of the graph's picture.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    width: int
    height: int
    size: PictureSize

    @property
    def is_identity(self) -> bool:
        return self.size == (self.width, self.height)

    @property
    def is_whole(self) -> bool:
        """Whether all of the picture is read."""
        return self.source == (0, 0, self.width, self.height)

    def forward(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 `(H, W, 3)` into the graph's picture, of its own height and width."""
        left, top, right, bottom = self.target
        small = _resize(_crop(picture, self.source), right - left, bottom - top, Image.Resampling.LANCZOS)
        return np.pad(small, (*self._margins(), (0, 0)), mode="edge")

    def forward_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask `(H, W)` into the graph's picture: a pixel is inside when any part of it is."""
        left, top, right, bottom = self.target
        cut = np.asarray(_crop(mask, self.source), np.float32)
        small = _resize_plane(cut, right - left, bottom - top, Image.Resampling.BOX)
        return np.pad(small > 0, self._margins())

    def back(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Planes of the graph's picture, with its channels last, laid over the given one, `(H, W, C)`; zero where they do not reach."""
        left, top, right, bottom = self.source
        part = _crop(planes, self.target)
        laid_over = np.zeros((self.height, self.width, part.shape[-1]), np.float32)
        for c in range(part.shape[-1]):
            laid_over[top:bottom, left:right, c] = _resize_plane(part[..., c], right - left, bottom - top, Image.Resampling.BICUBIC)
        return laid_over

    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        left, top, right, bottom = self.target
        return ((top, self.size.height - bottom), (left, self.size.width - right))


def fit_whole(width: int, height: int, size: PictureSize) -> Fit:
    """The whole picture, centred in the graph's."""
    scale = min(size.width / width, size.height / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size.width - w) // 2, (size.height - h) // 2
    return Fit(source=(0, 0, width, height), target=(left, top, left + w, top + h), width=width, height=height, size=size)


def fit_centre(width: int, height: int, size: PictureSize) -> Fit:
    """The largest part around the picture's centre that has the shape of the graph's, filling that."""
    w = min(width, max(1, round(height * size.width / size.height)))
    h = min(height, max(1, round(width * size.height / size.width)))
    left, top = (width - w) // 2, (height - h) // 2
    return Fit(source=(left, top, left + w, top + h), target=(0, 0, *size), width=width, height=height, size=size)


def _crop(array: NDArray[Any], box: tuple[int, int, int, int]) -> NDArray[Any]:
    left, top, right, bottom = box
    return array[top:bottom, left:right]


def _resize(picture: NDArray[np.uint8], width: int, height: int, method: Image.Resampling) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), method), np.uint8)


def _resize_plane(plane: NDArray[np.float32], width: int, height: int, method: Image.Resampling) -> NDArray[np.float32]:
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((width, height), method), np.float32)
