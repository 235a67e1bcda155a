"""A picture as PNG, with what its file says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.parameters import parameters_text
from quad.runtime.provenance.xmp import xmp_packet

PARAMETERS: Final = "parameters"
XMP: Final = "XML:com.adobe.xmp"
_LEVEL = 6  # zlib's own


@dataclass(frozen=True, kw_only=True)
class PngOptions:
    """Contents of a file beside the pixels.

    Args:
        parameters: the text that tells how it was made, prompt and all.
        mark: XMP that says that a model made it.
        sign: whole PNG, its facts -> the same with content credentials; None for none.
        level: of zlib.
    """

    parameters: bool = True
    mark: bool = False
    sign: Callable[[bytes, PictureFacts], bytes] | None = None
    level: int = _LEVEL


def plain_png(picture: Image, info: PngInfo | None = None, level: int = _LEVEL) -> bytes:
    """The file's bytes, with nothing said of the picture but `info`."""
    data = BytesIO()
    picture.save(data, format="PNG", pnginfo=info, compress_level=level)
    return data.getvalue()


def encode_png(picture: Image, facts: PictureFacts, options: PngOptions) -> bytes:
    """The file's bytes; the same for the same picture and facts, unless it is signed.

    Raises:
        InputError: it cannot be signed.
    """
    info = PngInfo()
    if options.parameters:
        info.add_text(PARAMETERS, parameters_text(facts))
    if options.mark:
        info.add_itxt(XMP, xmp_packet(facts.edited))
    data = plain_png(picture, info, options.level)
    return data if options.sign is None else options.sign(data, facts)
