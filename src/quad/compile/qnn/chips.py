"""Qualcomm chips by name: what their compiler wants to know of them.

Source: docs/targets.md; numbers are those of the SDK's own headers.
"""

from __future__ import annotations

import msgspec

from quad.core.errors import UsageError, mismatch


class Soc(msgspec.Struct, frozen=True):
    """One chip.

    Args:
        model: the SDK's number of the chip.
        arch: version of its HTP; a binary runs on this version and no other.
    """

    name: str
    model: int
    arch: int


DEFAULT_SOC = "SM8750"
SOCS = {
    soc.name: soc
    for soc in (
        Soc("SM8550", 43, 73),
        Soc("SM8650", 57, 75),
        Soc("SM8750", 69, 79),
        Soc("SM8850", 87, 81),
    )
}


def soc_named(name: str) -> Soc:
    """A chip by its name, in either case.

    Raises:
        UsageError: no such chip.
    """
    soc = SOCS.get(name.upper())
    if soc is None:
        raise UsageError(mismatch("--soc", " | ".join(SOCS), name, "choose one of these"))
    return soc
