"""Width and height of pictures, in the order in which people write them: `512x768` is 512 wide."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import msgspec

from quad.core.errors import UsageError, mismatch

LARGEST_SIZE = 8192  # pixels along one side: more is damage, or meant to take all memory
_SIZE = re.compile(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?")
Pixels = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]


class PictureSize(NamedTuple):
    """Pixels of a picture; in JSON `[width, height]`."""

    width: Pixels
    height: Pixels

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def is_square(self) -> bool:
        return self.width == self.height

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns, as arrays have them."""
        return self.height, self.width


def graph_name(component: str, size: PictureSize | None, group: int = 0) -> str:
    """Name of a graph among all of a bundle: its component, with the size where that is not the bundle's first, and with the number of its
    group of adapters where that is not the first.

    Args:
        group: counted from 0; in names, which people read, from 1.
    """
    parts = [component, *([] if size is None else [f"{size}"]), *([f"group-{group + 1}"] if group else [])]
    return ".".join(parts)


def component_of(graph: str) -> str:
    """The component of a graph of that name."""
    return graph.partition(".")[0]


def square(side: int) -> PictureSize:
    """A picture of `side` pixels each way."""
    return PictureSize(side, side)


def parse_sizes(option: str, text: str | int) -> tuple[PictureSize, ...]:
    """`512`, `512x768`, or several of them with commas between, in the order given.

    Args:
        option: what asked for them, for the message.

    Raises:
        UsageError: it is no such text, or one size is there twice.
    """
    sizes = []
    for part in str(text).split(","):
        match = _SIZE.fullmatch(part.strip())
        if match is None:
            raise UsageError(mismatch(option, "WIDTHxHEIGHT or N, in pixels", repr(text), f"write {option} 512x768"))
        width = int(match[1])
        sizes.append(PictureSize(width, int(match[2] or width)))
    if len(set(sizes)) < len(sizes):
        raise UsageError(mismatch(option, "each size once", repr(text), "leave one out"))
    return tuple(sizes)
