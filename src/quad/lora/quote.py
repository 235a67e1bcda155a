"""Names out of a file, as parts of a message."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 160
_LISTED = 8


def quoted(name: str) -> str:
    """A name as part of one line: no control characters, no more than a line holds."""
    short = name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."
    return short if short.isprintable() else repr(short)


def listed(names: Iterable[str]) -> str:
    """The first of several names, and how many more there are."""
    quotes = [quoted(name) for name in names]
    return ", ".join(quotes[:_LISTED]) + (f" and {len(quotes) - _LISTED} more" if len(quotes) > _LISTED else "")
