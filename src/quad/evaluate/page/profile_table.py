"""How the one profile came to be, as a table of the demo's page: sensitivities, whose ranges hold, what alignment brought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quad.evaluate.page.table import Cell, Row, Table, plain

QUAD_SECONDS = 180.0
QUAD_STAGES = ("calibrate", "score", "unify", "round", "align")
COLUMNS = ("QSS, bits", "95 %", "own encodings", "shared", "rescaled", "distilled", "effect gain")


def quad_seconds(build: Mapping[str, Any]) -> float:
    """Seconds of sensitivity, profile and alignment together."""
    return float(sum(build["stages"].get(stage, 0.0) for stage in QUAD_STAGES))


def profile_table(build: Mapping[str, Any]) -> Table | None:
    """The adapters in order of sensitivity; None where nothing was quantized.

    Args:
        build: the object of `quad build --json`.
    """
    profile, alignment = build["profile"], build["alignment"]
    if "ranking" not in profile:
        return None
    rows = [Row(name=name, cells=_cells(profile, alignment[name], name)) for name in profile["ranking"]]
    seconds = quad_seconds(build)
    total = Cell(f"{seconds:.0f} s", seconds <= QUAD_SECONDS)
    rows.append(Row(name="sensitivity, profile, alignment", cells=(total,), bar=f"≤ {QUAD_SECONDS:.0f} s"))
    lead = (
        f"Profile {profile['mode']}: {profile['reason']}. QSS is the paired-Gaussian divergence of the U-Net's output from full precision; "
        "the four columns after it are SQNR of that output: with encodings of its own, and on held-out calls under the shared profile, "
        "before alignment, rescaled, and distilled. The gain is of the adapter's effect at the end, 1 is right."
    )
    return Table(title="How the one profile was made", lead=lead, columns=COLUMNS, rows=rows)


def _cells(profile: Mapping[str, Any], aligned: Mapping[str, Any], name: str) -> tuple[Cell, ...]:
    low, high = profile["qss_interval"][name]
    steps = [f"{aligned[step]:.1f} dB" for step in ("before_db", "after_rescale_db", "after_distill_db")]
    gain = aligned["effect"]["after_distill"]["gain"]
    texts = [f"{profile['qss'][name]:.1e}", f"{low:.1e} to {high:.1e}", f"{profile['sqnr_db'][name]:.1f} dB", *steps]
    return plain(*texts, "" if gain is None else f"{gain:.3f}")
