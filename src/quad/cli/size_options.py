"""Options of `quad run` that tell a model the picture's size, where it is told any."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from quad.core.errors import UsageError, mismatch
from quad.core.picture_size import parse_sizes

if TYPE_CHECKING:
    from quad.runtime.conditioning.size_conditions import SizeConditions

OriginalSize = Annotated[
    str | None,
    typer.Option(help="Size of the original picture that the model is told (SDXL); the picture's own by default.", metavar="WxH",
                 show_default=False),
]  # fmt: skip
TargetSize = Annotated[
    str | None, typer.Option(help="Target size that it is told; the picture's own by default.", metavar="WxH", show_default=False)
]
Crop = Annotated[
    str | None,
    typer.Option(help="Pixels cut off on the left and above that it is told; none by default.", metavar="X,Y", show_default=False),
]


def size_conditions(original: str | None, crop: str | None, target: str | None) -> SizeConditions:
    """The options as the runtime takes them.

    Raises:
        UsageError: one is no size, or no place.
    """
    from quad.runtime.conditioning.size_conditions import SizeConditions

    return SizeConditions(
        original_size=_size("--original-size", original), crops_coords_top_left=_place(crop), target_size=_size("--target-size", target)
    )


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sizes = parse_sizes(option, text)
    if len(sizes) != 1:
        raise UsageError(mismatch(option, "one size", repr(text), "name one"))
    return sizes[0].grid


def _place(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d{1,5}),(\d{1,5})", text)):
        raise UsageError(mismatch("--crop", "X,Y in pixels", repr(text), "give both, such as 0,0"))
    return int(match[2]), int(match[1])
