"""The rows of the ablation, as data: each is a build like the first one but for what it names. Source: the paper's tables 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quad.compile.targets import check_precision, load_target
from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.precision import eight_bit_percent

BASELINE = "w8a16"
MOST_SENSITIVE = "most-sensitive"  # as `anchor`: the adapter of highest QSS in the first row's build
STEPS_AT = "mixed:80"  # 16 bits forgive what a step mends: the steps are judged where most sites have 8
GROUPS = ("precision", "lora", "profile", "hard", "steps")


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: unique; also the name of its folder of pictures.
        build: fields of `BuildRequest` that differ from its defaults.
        quality: fields of `QualitySteps` that do.
        beside: the row it is to be compared with.
        own: every adapter is built alone, on its own samples.
        made: an adapter made on purpose joins the others (`quad.zoo.synthetic_adapter`); it has no task, so it is not measured itself.
    """

    name: str
    group: str
    build: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, bool] = field(default_factory=dict)
    beside: str = BASELINE
    own: bool = False
    made: bool = False

    @property
    def a8_fraction(self) -> float:
        """Share of the U-Net's activation sites at 8 bits, in [0, 1]."""
        return (eight_bit_percent(self.precision) or 0.0) / 100

    @property
    def lora_bits(self) -> int:
        return int(self.build.get("lora_bits", 16))

    @property
    def precision(self) -> str:
        return str(self.build.get("precision", BASELINE))


def _mixed(percent: int) -> Row:
    return Row(f"mixed-{percent}", "precision", {"precision": f"mixed:{percent}"})


def _without(name: str, step: str) -> Row:
    return Row(name, "steps", {"precision": STEPS_AT}, {step: False}, beside="mixed-80")


ROWS = (
    Row(BASELINE, "precision", {"precision": BASELINE}),
    *(_mixed(percent) for percent in (20, 40, 60, 80, 90)),
    Row("w8a8", "precision", {"precision": "w8a8"}),
    Row("lora-8", "lora", {"lora_bits": 8}),
    Row("lora-8-mixed-80", "lora", {"lora_bits": 8, "precision": "mixed:80"}, beside="mixed-80"),
    Row("profile-anchor", "profile", {"anchor": MOST_SENSITIVE}),
    Row("profile-unified", "profile", {"anchor": "unified"}),
    Row("profile-own", "profile", {}, own=True),
    Row("literal-shared-scale", "profile", {"literal_shared_scale": True}),
    Row("profile-unified-mixed-80", "profile", {"precision": STEPS_AT, "anchor": "unified"}, beside="mixed-80"),
    Row("profile-own-mixed-80", "profile", {"precision": STEPS_AT}, beside="mixed-80", own=True),
    Row("hard-w8a16", "hard", made=True),
    Row("hard-mixed-80", "hard", {"precision": STEPS_AT}, beside="mixed-80", made=True),
    Row("hard-unified-mixed-80", "hard", {"precision": STEPS_AT, "anchor": "unified"}, beside="mixed-80", made=True),
    _without("without-range-search", "search_ranges"),
    _without("without-split-skips", "split_skips"),
    _without("without-equalization", "equalize"),
    _without("without-bias-correction", "bias_correction"),
    _without("without-ranking", "rank_sites"),
    Row("without-distillation", "steps", {"distill_steps": 0}),
    Row("distillation-mixed-80", "steps", {"precision": STEPS_AT, "distill_steps": 20}, beside="mixed-80"),
)


def _offered(row: Row, target: str) -> bool:
    """Has the target the row's precision."""
    try:
        check_precision(load_target(target), row.precision)
    except UnsupportedError:
        return False
    return True


def plan(wanted: Sequence[str] = (), target: str = "cpu") -> tuple[Row, ...]:
    """The rows to measure, in the order of `ROWS`; the row that one is compared with always comes along.

    Args:
        wanted: names of rows or of groups; none for all.

    Raises:
        UsageError: a name is neither.
    """
    offered = tuple(row for row in ROWS if _offered(row, target))
    known = {*(row.name for row in offered), *(row.group for row in offered)}
    if strange := [name for name in wanted if name not in known]:
        names = ", ".join([*GROUPS, *(row.name for row in offered)])
        raise UsageError(mismatch("--rows", f"some of {names}", repr(strange[0]), "choose among these"))
    chosen = {row.name: row.beside for row in offered if not wanted or row.name in wanted or row.group in wanted}
    needed = {BASELINE, *chosen, *chosen.values()}
    return tuple(row for row in offered if row.name in needed)
