"""Files that are no pictures, or pictures that would take all memory."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from quad.core.errors import InputError
from tests.hostile.raw import of_bytes
from tests.hostile.refusal import Case


def encoded(mode: str = "RGB", kind: str = "PNG", side: int = 64) -> bytes:
    """A sound picture of grain."""
    bands = {"RGB": 3, "L": 1}[mode]
    grain = np.random.default_rng(0).integers(0, 256, (side, side, bands)).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(grain[..., 0] if bands == 1 else grain).save(held, kind)
    return held.getvalue()


PNG, JPEG = encoded(), encoded(kind="JPEG")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that says it is so large, with whatever data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def _gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0"
        + bytes(6)
        + b"\x2c"
        + bytes(4)
        + struct.pack("<HH", width, height)
        + b"\0\x02\x02\x4c\x01\0;"
    )


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


_BYTES: Mapping[str, bytes] = {
    "no bytes": b"",
    "one byte": b"\x89",
    "a PNG's first bytes": PNG[:8],
    "a PNG cut in its header": PNG[:20],
    "a PNG cut in half": PNG[: len(PNG) // 2],
    "a PNG with a byte changed": PNG[:100] + bytes([PNG[100] ^ 255]) + PNG[101:],
    "a PNG of no data": png(64, 64),
    "a PNG of 0 by 0": png(0, 0),
    "a PNG of 64 by 0": png(64, 0),
    "a PNG of 2^31 by 2^31": png(2**31 - 1, 2**31 - 1),
    "a PNG of 30,000 by 30,000": png(30_000, 30_000, bytes(1000)),
    "a PNG of 3 bits": png(64, 64, bytes(64 * 200), bits=3),
    "a PNG of colour 7": png(64, 64, bytes(64 * 200), colour=7),
    "a JPEG's first bytes": JPEG[:3],
    "a JPEG cut in its header": JPEG[:100],
    "a JPEG cut in half": JPEG[: len(JPEG) // 2],
    "a JPEG of 65,535 by 65,535": JPEG[: JPEG.index(b"\xff\xc0") + 5] + b"\xff\xff\xff\xff" + JPEG[JPEG.index(b"\xff\xc0") + 9 :],
    "a GIF of 0 by 0": _gif(0, 0),
    "a GIF of 65,535 by 65,535": _gif(65_535, 65_535),
    "a BMP of 100,000 by 100,000": _bmp(100_000, 100_000),
    "a BMP of no data": _bmp(64, 64),
    "a WebP cut": b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(8),
    "a TIFF in a circle": b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x40\0\0\0\x08\0\0\0",
    "an ICO of itself": b"\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0",
    "words": b"a photo of a house\n" * 9,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="file:///etc/passwd"/></svg>',
    "a web page": b"<!DOCTYPE html><html></html>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
    "PDF": b"%PDF-1.7\n1 0 obj<<>>endobj\n",
    "zeros": bytes(4096),
}


_SAYS = dict.fromkeys(
    ("a PNG of 2^31 by 2^31", "a PNG of 30,000 by 30,000", "a JPEG of 65,535 by 65,535", "a GIF of 65,535 by 65,535",
     "a BMP of 100,000 by 100,000"), "pixels, found many more",
)  # fmt: skip


def _made(make: Callable[[Path], object], name: str = "in.png") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        make(folder / name)
        return folder / name

    return write


def _hole(file: Path) -> None:
    """A terabyte that takes no room on the disk."""
    with file.open("wb") as stream:
        stream.truncate(2**40)


PICTURES = [
    *(Case(name, of_bytes(data, "in.png"), InputError, _SAYS.get(name, "a picture")) for name, data in _BYTES.items()),
    Case("a pipe", _made(os.mkfifo), InputError, "a picture file, found no plain file"),
    Case("a device without end", _made(lambda file: file.symlink_to("/dev/zero")), InputError, "a picture file, found no plain file"),
    Case("a folder", _made(lambda file: file.mkdir()), InputError, "a picture file, found no plain file"),
    Case("a link to itself", _made(lambda file: file.symlink_to(file)), InputError, "a picture file"),
    Case("nothing", _made(lambda _: None), InputError, "a picture file, found No such file"),
    Case("a name of 5,000 letters", _made(lambda _: None, "x" * 5000), InputError, "a picture file"),
    Case("a terabyte of nothing", _made(_hole), InputError, "at most 512 MiB"),
]
