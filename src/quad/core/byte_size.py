"""Sizes as people write them: a number of bytes, or one with a unit, `1500MB` or `2GB`."""

from __future__ import annotations

import re

from quad.core.errors import UsageError, mismatch

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?) ?([A-Za-z]{0,2})")


def parse_bytes(option: str, text: str | int) -> int:
    """Bytes that an option's value means.

    Raises:
        UsageError: it is no size.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(mismatch(option, "a size", repr(text), f"write {option} 2GB"))
    return int(float(match[1]) * _UNITS[match[2].upper()])
