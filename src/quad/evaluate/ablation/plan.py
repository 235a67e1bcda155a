"""The rows of the ablation, as data: each is a build like the first one but for what it names. Source: the paper's tables 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quad.compile.targets import check_precision, load_target
from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.precision import eight_bit_percent

BASELINE = "w8a16"
MOST_SENSITIVE = "most-sensitive"  # as `anchor`: the adapter of highest QSS in the first row's build
STEPS_AT = "mixed:80"  # 16 bits forgive what a step mends: the steps are judged where most sites have 8
GROUPS = ("precision", "lora", "profile", "hard", "rounding", "steps", "text", "slots", "four-bits")
ALONE = ("text", "slots", "four-bits")  # groups that are compared within themselves and with the rows they name


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One row.

    Args:
        name: unique; also the name of its folder of pictures.
        build: fields of `BuildRequest` that differ from its defaults; the precision, where it is not that of the first row.
        quality: fields of `QualitySteps` that do.
        baseline: the row it is to be compared with.
        per_adapter: every adapter is built alone, on its own samples.
        synthetic: an adapter made on purpose joins the others (`quad.zoo.synthetic_adapter`); it has no task, so it is not measured itself.
        later: later adapters are admitted to the bundle, at several strengths.
    """

    name: str
    group: str
    build: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    baseline: str = BASELINE
    per_adapter: bool = False
    synthetic: bool = False
    later: bool = False

    @property
    def a8_fraction(self) -> float:
        """Share of the U-Net's activation sites at 8 bits, in [0, 1]."""
        return (eight_bit_percent(self.precision) or 0.0) / 100

    @property
    def lora_bits(self) -> int:
        """Bits of a LoRA weight."""
        return int(self.build.get("lora_bits", 16))

    @property
    def precision(self) -> str:
        """The precision it is built with."""
        return str(self.build.get("precision", BASELINE))


def _mixed(percent: int) -> AblationRow:
    return AblationRow(name=f"mixed-{percent}", group="precision", build={"precision": f"mixed:{percent}"})


def _without(name: str, step: str) -> AblationRow:
    return AblationRow(name=name, group="steps", build={"precision": STEPS_AT}, quality={step: False}, baseline="mixed-80")


def _slots(name: str, *, precision: str = BASELINE, baseline: str = "slots-searched", synthetic: bool = False, **build: Any) -> AblationRow:
    """Nothing is trained, so that slots are compared and not what training makes of them."""
    settings = {"precision": precision, **build}
    return AblationRow(name=name, group="slots", build=settings, baseline=baseline, synthetic=synthetic, later=True)


def _wider(factor: int) -> AblationRow:
    """Normalised slots with a range of `A x` that is this many times as wide."""
    row = _slots(f"slots-normalised-x{factor}", baseline="slots-normalised", slots="normalised")
    return replace(row, quality={"mid_widening": float(factor)})


def _slot_rows() -> tuple[AblationRow, ...]:
    """Searched and normalised slots, at each precision and with LoRA weights of 8 bits."""
    rows = [
        _slots("slots-searched", slots="searched"),
        _slots("slots-searched-pooled", anchor="unified", slots="searched"),
        _slots("slots-normalised", slots="normalised"),
        *(_wider(factor) for factor in (2, 4, 8)),
    ]
    for name, precision, bits in (("lora-8", BASELINE, 8), ("mixed-80", "mixed:80", 16), ("w8a8", "w8a8", 16)):
        searched = f"slots-searched-{name}"
        rows.append(_slots(searched, precision=precision, lora_bits=bits, slots="searched"))
        rows.append(_slots(f"slots-normalised-{name}", precision=precision, baseline=searched, lora_bits=bits, slots="normalised"))
    for name, precision in (("hard", BASELINE), ("hard-mixed-80", "mixed:80")):
        searched = f"slots-searched-{name}"
        rows.append(_slots(searched, precision=precision, synthetic=True, slots="searched"))
        rows.append(_slots(f"slots-normalised-{name}", precision=precision, baseline=searched, synthetic=True, slots="normalised"))
    return tuple(rows)


def _four_bit_rows() -> tuple[AblationRow, ...]:
    """Weights of 4 bits, and each of what keeps their error small left out."""
    precision = {"precision": "w4a16"}
    return (
        AblationRow(name="w4a16", group="four-bits", build=precision),
        AblationRow(name="w4a16-uncorrected", group="four-bits", build={**precision, "correction_rank": 0}, baseline="w4a16"),
        AblationRow(
            name="w4a16-nearest", group="four-bits", build={**precision, "correction_rank": 0, "rounding": "nearest"}, baseline="w4a16"
        ),
        AblationRow(name="w4a16-rank-32", group="four-bits", build={**precision, "correction_rank": 32}, baseline="w4a16"),
        AblationRow(name="w4-mixed-80", group="four-bits", build={"precision": "w4:mixed:80"}, baseline="mixed-80"),
    )


ROWS = (
    AblationRow(name=BASELINE, group="precision", build={"precision": BASELINE}),
    *(_mixed(percent) for percent in (20, 40, 60, 80, 90)),
    AblationRow(name="w8a8", group="precision", build={"precision": "w8a8"}),
    AblationRow(name="lora-8", group="lora", build={"lora_bits": 8}),
    AblationRow(name="lora-8-mixed-80", group="lora", build={"lora_bits": 8, "precision": "mixed:80"}, baseline="mixed-80"),
    AblationRow(name="profile-anchor", group="profile", build={"anchor": MOST_SENSITIVE}),
    AblationRow(name="profile-unified", group="profile", build={"anchor": "unified"}),
    AblationRow(name="profile-own", group="profile", build={}, per_adapter=True),
    AblationRow(
        name="literal-shared-scale", group="profile", build={"literal_shared_scale": True, "slots": "searched"}, baseline="slots-searched"
    ),
    AblationRow(name="profile-unified-mixed-80", group="profile", build={"precision": STEPS_AT, "anchor": "unified"}, baseline="mixed-80"),
    AblationRow(name="profile-own-mixed-80", group="profile", build={"precision": STEPS_AT}, baseline="mixed-80", per_adapter=True),
    AblationRow(name="hard-w8a16", group="hard", synthetic=True),
    AblationRow(name="hard-mixed-80", group="hard", build={"precision": STEPS_AT}, baseline="mixed-80", synthetic=True),
    AblationRow(
        name="hard-unified-mixed-80", group="hard", build={"precision": STEPS_AT, "anchor": "unified"}, baseline="mixed-80", synthetic=True
    ),
    AblationRow(name="nearest-rounding", group="rounding", build={"rounding": "nearest"}),
    AblationRow(
        name="nearest-rounding-mixed-80", group="rounding", build={"precision": STEPS_AT, "rounding": "nearest"}, baseline="mixed-80"
    ),
    _without("without-range-search", "search_ranges"),
    _without("without-split-skips", "split_skips"),
    _without("without-equalization", "equalize"),
    _without("without-bias-correction", "bias_correction"),
    _without("without-ranking", "rank_sites"),
    AblationRow(name="distillation", group="steps", build={"distill_steps": 20}),
    AblationRow(name="distillation-mixed-80", group="steps", build={"precision": STEPS_AT, "distill_steps": 20}, baseline="mixed-80"),
    AblationRow(name="begin-of-text", group="text", build={"precision": "w8a8"}, quality={"text_at_16": True}, baseline="w8a8"),
    *_slot_rows(),
    *_four_bit_rows(),
)


def _offered(row: AblationRow, target: str) -> bool:
    """Has the target the row's precision."""
    try:
        check_precision(load_target(target), row.precision)
    except UnsupportedError:
        return False
    return True


def plan(selection: Sequence[str] = (), target: str = "cpu") -> tuple[AblationRow, ...]:
    """The rows to measure, in the order of `ROWS`; the row that one is compared with always comes along.

    Args:
        selection: names of rows or of groups; none for all.

    Raises:
        UsageError: a name is neither.
    """
    offered = tuple(row for row in ROWS if _offered(row, target))
    valid = {*(row.name for row in offered), *(row.group for row in offered)}
    if strange := [name for name in selection if name not in valid]:
        names = ", ".join([*GROUPS, *(row.name for row in offered)])
        raise UsageError(mismatch("--rows", f"some of {names}", repr(strange[0]), "choose among these"))
    chosen = [row for row in offered if not selection or row.name in selection or row.group in selection]
    needed = {row.name for row in chosen} | {row.baseline for row in chosen}
    if any(row.group not in ALONE for row in chosen):
        needed.add(BASELINE)
    return tuple(row for row in offered if row.name in needed)
