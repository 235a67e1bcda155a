"""Targets: what a chip and its toolchain can run, as data. One JSON file per target, read into `Target`."""

from __future__ import annotations

from importlib import resources

import msgspec

from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.quantize.precision import eight_bit_percent, precision_kind


class WeightScheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an operator's constant operand may be stored."""

    dtypes: tuple[str, ...]
    per_channel: bool


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A capability table.

    Args:
        engines: engines that run its graphs, best first.
        precisions: what `--precision` may ask for; `mixed` stands for every `mixed:P`.
        slot_dtypes, activation_dtypes: element types of slot inputs and of activations between Q and DQ.
        bias: element type of biases.
        weights: operator type -> scheme of its weight; an operator that is not named keeps float weights.
    """

    name: str
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    slot_dtypes: tuple[str, ...]
    activation_dtypes: tuple[str, ...]
    bias: str
    weights: dict[str, WeightScheme]


def target_names() -> tuple[str, ...]:
    """Every target whose table ships, sorted."""
    return tuple(sorted(entry.name[:-5] for entry in resources.files(__name__).iterdir() if entry.name.endswith(".json")))


def load_target(name: str) -> Target:
    """The table of a target.

    Raises:
        UsageError: no such target.
    """
    if name not in target_names():
        raise UsageError(mismatch("--target", " | ".join(target_names()), name, "choose one of these"))
    return msgspec.json.decode(resources.files(__name__).joinpath(f"{name}.json").read_bytes(), type=Target)


def check_precision(target: Target, precision: str) -> None:
    """Refuse what the target cannot run, naming it.

    Raises:
        UnsupportedError: a precision that this target does not run.
        UsageError: a word that is no precision, or a share outside 0 to 100.
    """
    eight_bit_percent(precision)
    if precision_kind(precision) not in target.precisions:
        expected = f"{' | '.join(target.precisions)} for target {target.name}"
        raise UnsupportedError(mismatch("--precision", expected, precision, "choose one of these"))
