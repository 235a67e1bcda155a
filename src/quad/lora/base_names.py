"""The other models that LoRA files are trained for, known by the names and widths only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quad.core.families import SIGNS

_BY_NAME = tuple((re.compile(signs.keys), signs.name) for signs in SIGNS if signs.keys)
# Width of the text features that cross-attention reads.
_BY_WIDTH = {signs.text_width: signs.name for signs in SIGNS if signs.text_width is not None}
OTHER_BASE = "another base"
_ALL_WIDTHS = re.compile(r"\.attn2\.to_[kv]$")


def base_by_names(keys: Iterable[str], own: Iterable[str] = ()) -> tuple[str, str] | None:
    """The base that some key shows, and that key; None if no key is of a base known here.

    Args:
        own: paths of the base at hand; what they show as well is no other base.
    """
    listed, paths = list(keys), list(own)
    for pattern, name in _BY_NAME:
        if any(pattern.search(path) for path in paths):
            continue
        for key in listed:
            if pattern.search(key):
                return name, key
    return None


def reads_text(path: str) -> bool:
    """Whether a module's input is the text features, so that its width tells the base."""
    return _ALL_WIDTHS.search(path) is not None


def base_by_width(width: int) -> str:
    """The base whose text features are so wide."""
    return _BY_WIDTH.get(width, OTHER_BASE)
