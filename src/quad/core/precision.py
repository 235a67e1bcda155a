"""The grammar of `--precision`: float, or weights of 8 or 4 bits and a share of the U-Net's activation sites at 8 bits, the others at 16.

| word | share at 8 bits |
|---|---|
| `w8a16` | 0 % |
| `mixed:P` | P %, those of least isolated damage |
| `w8a8` | 100 % |
| `w4a16`, `w4:mixed:P` | the same two with the U-Net's weights at 4 bits |
| `float` | no rounding at all |
| `dynamic-w8` | no activation has an encoding: weights are int8, and the engine rounds what meets them as it runs |
"""

from __future__ import annotations

import re

from quad.core.errors import UsageError, mismatch

FLOAT = "float"
DYNAMIC = "dynamic-w8"
FLOATS = (FLOAT, DYNAMIC)  # activations and slots are floats
MIXED = "mixed"
WORDS = {"w8a16": 0.0, "w8a8": 100.0, "w4a16": 0.0}
ALL_AS_WRITTEN = ("w8a16", "w4a16")  # no activation has 8 bits: on a CPU every kernel is one of floats
_HALVED, _FOUR = "w4", "w4:"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def precision_kind(precision: str) -> str:
    """The word without its share, as targets list it: `mixed` for `mixed:80`, `w4:mixed` for `w4:mixed:80`."""
    prefix = _FOUR if precision.startswith(_FOUR) else ""
    return prefix + precision.removeprefix(prefix).partition(":")[0]


def has_four_bits(precision: str) -> bool:
    """Are most weights of 4 bits."""
    return precision.startswith(_HALVED)


def eight_bit_percent(precision: str) -> float | None:
    """Percent of the activation sites at 8 bits, in `[0, 100]`; None where activations are floats.

    Raises:
        UsageError: no such precision, or P outside 0 to 100.
    """
    if precision in FLOATS:
        return None
    if precision in WORDS:
        return WORDS[precision]
    kind, _, share = precision.removeprefix(_FOUR).partition(":")
    if kind != MIXED:
        expected = " | ".join((*WORDS, f"{MIXED}:P", f"{_FOUR}{MIXED}:P", *FLOATS))
        raise UsageError(mismatch("--precision", expected, repr(precision), "choose one of these"))
    if not _NUMBER.fullmatch(share) or not 0.0 <= float(share) <= 100.0:
        raise UsageError(mismatch("--precision", "mixed:P with P from 0 to 100", repr(precision), "as in mixed:80"))
    return float(share)
