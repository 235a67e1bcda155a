"""Pictures over the wire: read under bounds, written as PNG, the pixels untouched."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from quad.runtime.conditioning.picture import PictureSource, open_picture, picture_bytes, to_rgb
from quad.runtime.conditioning.picture_file import decode_picture
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.png import PngOptions, encode_png, plain_png

FORMATS = ("PNG", "JPEG", "WEBP")
PNG = "image/png"
_KEPT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
MOST_BYTES_PER_PIXEL = 4  # in memory
_FAST = 1  # of zlib's levels: it stays on the device


def held_bytes(picture: Image.Image | None) -> int:
    """Memory of a decoded picture."""
    return 0 if picture is None else picture.width * picture.height * (1 if picture.mode == "L" else MOST_BYTES_PER_PIXEL)


def to_png(picture: Image.Image, facts: PictureFacts | None = None, options: PngOptions | None = None) -> bytes:
    """The picture's file, with what the options ask to be said in it."""
    if facts is not None and options is not None:
        return encode_png(picture, facts, replace(options, level=_FAST))
    return plain_png(picture, level=_FAST)


def picture_file(source: PictureSource | None, where: str) -> bytes | None:
    """A user's picture as the file that a server reads to the same pixels as the pipeline would.

    Raises:
        InputError: it is no picture, or damaged.
    """
    if source is None:
        return None
    data = picture_bytes(Path(source), where) if isinstance(source, str | Path) else None
    if data is not None and _goes_as_it_is(data):
        return data
    picture = open_picture(source, where) if data is None else decode_picture(data, f"{where} {source}")
    if picture.mode not in _KEPT_MODES:  # PNG does not hold it as it is: as the pipeline reads it
        picture = picture.convert("RGBA") if picture.has_transparency_data else Image.fromarray(to_rgb(picture)[0])
    plain = picture.copy()
    plain.info = {key: value for key, value in picture.info.items() if key == "transparency"}  # its Exif must not turn it again
    return to_png(plain)


def _goes_as_it_is(data: bytes) -> bool:
    """A photo's own file is a fifth of its PNG."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS):
            return True
    except Exception:  # decoders raise many kinds; what is wrong with it is told when it is decoded
        return False


def from_png(data: bytes) -> Image.Image:
    """A server's picture, wholly read."""
    with Image.open(BytesIO(data), formats=("PNG",)) as picture:
        return Image.fromarray(np.asarray(picture, np.uint8))
