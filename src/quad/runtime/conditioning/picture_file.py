"""The file of a picture: opened, decoded under bounds, brought to 8 bits. Pillow and nothing else, for a decoder's process imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from quad.core.errors import BackendError, InputError, QuadError, lack_of, mismatch

MAX_PIXELS = 100_000_000
_BAND_PIXELS = 2**18
_LEVELS_16 = 2**16
_MOST_16 = _LEVELS_16 - 1
# Measured: the picture, its turned copy and its 8 bits, and what the decoder itself needs beside them.
_BYTES_PER_PIXEL = {"PNG": 16, "JPEG": 20}
_MOST_BYTES_PER_PIXEL = 28  # WebP without loss, and any format that was not measured


@contextmanager
def open_file(data: bytes, where: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """A picture of which the header is read, while the block reads the rest.

    Args:
        where: what to call it in a message.
        max_pixels: width times height, which the header tells before anything is decoded.
        formats: names that Pillow knows, None for all of them.

    Raises:
        InputError: it is no picture, is damaged, which the block may find, or too large. BackendError: there is no memory for it.
    """
    n_bytes = 0
    try:
        with Image.open(BytesIO(data), formats=formats) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width}x{picture.height}"
                raise InputError(mismatch(where, f"at most {max_pixels} pixels", size, "make it smaller"))
            n_bytes = decoding_bytes(picture)
            yield picture
    except QuadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # before the header is given to anyone
        raise InputError(mismatch(where, f"at most {max_pixels} pixels", "many more", "make it smaller")) from error
    except Exception as error:  # decoders raise many kinds
        if isinstance(error, MemoryError) or "memory" in str(error).lower() or not _is_free(n_bytes // 4):
            raise no_memory(where) from error
        reason = "something else" if isinstance(error, UnidentifiedImageError) else f"a damaged one ({error})"
        raise InputError(mismatch(where, "a picture (PNG, JPEG, WebP)", reason, "check the file")) from error


def decode_picture(data: bytes, where: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The picture of a file's bytes, wholly read and turned upright; its mode is as it comes.

    Raises: as `open_file`.
    """
    with open_file(data, where, max_pixels, formats) as picture:
        return upright(picture)


def upright(picture: Image.Image) -> Image.Image:
    """An opened file's picture, wholly read and turned as its Exif says."""
    picture.load()
    return ImageOps.exif_transpose(picture)


def decoding_bytes(picture: Image.Image) -> int:
    """Memory that an opened file takes at most until its pixels are there, upright and in 8 bits."""
    return picture.width * picture.height * _BYTES_PER_PIXEL.get(picture.format or "", _MOST_BYTES_PER_PIXEL)


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """The picture as L, RGB or RGBA: what `to_rgb` reads is the same, in a quarter of the memory that 16 bits may take."""
    if picture.mode == "I;16":
        return _grey_of_16_bits(picture)
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom in pieces of a few rows, each with its first row: what is done to one takes little memory."""
    for top, bottom in band_edges(picture.width, picture.height):
        yield top, picture.crop((0, top, picture.width, bottom))


def band_edges(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First row of each band, and the row below it."""
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def grey_top(brightest: float) -> float:
    """The value that is white in a grey picture of more than 8 bits, which says nowhere how many it uses."""
    return 1.0 if brightest <= 1 else 255.0 if brightest <= 255 else float(_MOST_16)


def no_memory(where: str) -> BackendError:
    error = lack_of(where, MemoryError())
    assert error is not None
    return error


def _grey_of_16_bits(picture: Image.Image) -> Image.Image:
    top = grey_top(max(level for level in picture.getextrema() if isinstance(level, int | float)))
    levels = [round(min(value / top, 1.0) * 255) for value in range(_LEVELS_16)]
    grey = Image.new("L", picture.size)
    for row, band in bands(picture):
        grey.paste(band.convert("I").point(levels, "L"), (0, row))
    return grey


def _is_free(n_bytes: int) -> bool:
    """Whether there is so much memory: what a decoder says of memory that it did not get sounds like damage."""
    try:
        bytearray(n_bytes)
    except MemoryError:
        return False
    return True
