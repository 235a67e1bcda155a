"""Qualcomm chips by name: what their compiler wants to know of them.

Source: docs/targets.md; numbers are those of the SDK's own headers.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from quad.compile.targets import Target
from quad.core.chips import soc_names
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
        Soc("SM8350", 30, 68),
        Soc("SM8450", 36, 69),
        Soc("SM8550", 43, 73),
        Soc("SM8650", 57, 75),
        Soc("SM8750", 69, 79),
        Soc("SM8850", 87, 81),
    )
}


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of HTPs: its wishes beside those that the target's table states for all.

    Args:
        passes: run after the target's own, see `quad.compile.passes.PASSES`.
        int16_operand: see `Target`.
        weight_dtypes: element types of constant weights.
    """

    passes: tuple[str, ...] = ()
    int16_operand: int = 1
    weight_dtypes: tuple[str, ...] = ("int4", "int8", "int16")

    def table(self, target: Target) -> Target:
        """The target's table for chips of this generation."""
        weights = {name: replace(scheme, dtypes=self.weight_dtypes) for name, scheme in target.weights.items()}
        return replace(target, int16_operand=self.int16_operand, weights=weights)


NEWER = Generation()
# v68 and v69 read no 16-bit weight, constant or computed, but a signed 16-bit matrix on the left of a product (docs/targets.md).
_EIGHT_BIT_WEIGHTS = Generation(passes=("dynamic_conv", "left_operands"), int16_operand=0, weight_dtypes=("int4", "int8"))
_GENERATIONS = {68: _EIGHT_BIT_WEIGHTS, 69: _EIGHT_BIT_WEIGHTS}


def generation_of(soc: Soc) -> Generation:
    """The generation that a chip is of."""
    return _GENERATIONS.get(soc.arch, NEWER)


def only_soc(option: str | Sequence[str] | None) -> str:
    """The one chip that `--soc` names, or the default.

    Raises:
        UsageError: there are several.
    """
    names = soc_names(option) or (DEFAULT_SOC,)
    if len(names) > 1:
        raise UsageError(mismatch("--soc", "one chip for this target", ", ".join(names), "build a bundle for each"))
    return names[0]


def soc_named(name: str) -> Soc:
    """A chip by its name, in either case.

    Raises:
        UsageError: no such chip.
    """
    soc = SOCS.get(name.upper())
    if soc is None:
        raise UsageError(mismatch("--soc", " | ".join(SOCS), name, "choose one of these"))
    return soc
