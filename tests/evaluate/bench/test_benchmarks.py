"""Figures that benchmarks make of times: ratios that a drifting machine does not move, bars that can be missed, a side that is ended."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from benchmarks.rig import sides
from benchmarks.rig.figures import (
    BF16_MERGED,
    FLOAT_MERGED,
    FLOAT_SHARED,
    INT_MERGED,
    INT_SHARED,
    OPERATIONS,
    Figure,
    cost_figures,
    paired_ratio,
    rom_rows,
    speed_figures,
    switching_figures,
)

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_a_machine_that_slows_down_slows_both_sides() -> None:
    drift = np.linspace(1.0, 3.0, 9)
    assert paired_ratio(list(20.0 * drift), list(10.0 * drift)) == pytest.approx(2.0)


def test_a_figure_is_held_to_its_bar_from_the_right_side() -> None:
    assert [Figure(name="speed", value=value, bar=1.7, least=True).reached for value in (1.6, 1.7, 2.0)] == [False, True, True]
    assert [Figure(name="cost", value=value, bar=1.05).reached for value in (1.0, 1.05, 1.1)] == [True, True, False]


def test_speed_is_measured_against_every_float_graph_and_against_the_processor() -> None:
    times = {FLOAT_MERGED: [120.0, 132.0], BF16_MERGED: [75.0, 82.5], INT_SHARED: [50.0, 55.0]}
    floats, shorter, share = speed_figures("openvino", 64, times, peak=2 * OPERATIONS[64] / 52.5e-3)
    assert (floats.value, shorter.value, share.value) == pytest.approx((2.4, 1.5, 0.5))
    assert (floats.reached, shorter.reached, share.reached) == (True, False, False)
    assert len(speed_figures("ort", 32, {name: times[name] for name in (FLOAT_MERGED, INT_SHARED)}, 1.0)) == 2


def test_cost_is_that_of_the_slots() -> None:
    times = {FLOAT_MERGED: [100.0, 110.0], FLOAT_SHARED: [106.0, 116.6], INT_MERGED: [40.0, 44.0], INT_SHARED: [50.0, 55.0]}
    quantized, floats, dearest, spread = cost_figures("ort", times, {1: 0.1, 100: 0.3})
    assert (quantized.value, floats.value) == pytest.approx((1.25, 1.06))
    assert (quantized.reached, floats.reached) == (False, True)
    assert (dearest.value, spread.value) == pytest.approx((0.3, 3.0))
    assert (dearest.reached, spread.reached) == (True, False)


def test_ten_adapters_weigh_their_ranks_times_their_slots() -> None:
    row = rom_rows(1000, 500, 7, 16)[0]
    assert row == {"rank": 16.0, "ours": 1000 + 10 * 16 * 7 * 2, "fp16": 10_000, "int8": 10_000, "fp16_over_ours": 10_000 / 3240,
                   "int8_over_ours": 10_000 / 3240}  # fmt: skip


def ended(*_: object) -> None:
    """A child that the system kills."""
    os._exit(9)


@pytest.mark.timeout(60)
def test_a_side_that_is_ended_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "_serve", ended)
    with pytest.raises(RuntimeError, match="base: its process was ended"):
        sides.Side("base", engine="ort", precision="float", file=Path("model.onnx"), threads=1)


def test_switching_is_held_to_its_bars_by_turns_and_by_resident_memory() -> None:
    turn = {"switch_ms": 8.0, "read_ms": 6.0, "ratio": 1.4}
    found = {
        "kinds": {"searched": {"few_ms": 0.2, "many_ms": 0.21}, "normalised": {"few_ms": 0.19, "many_ms": 0.22}},
        "between": {"ort": {"median_ms": 0.1}, "openvino": {"median_ms": 0.7}},
        "warm": {"median_ms": 0.2}, "diffusers": {"median_ms": 24.0}, "merged": {"cold_ms": 400.0, "warm_ms": 300.0},
        "disk": {"later, cold, of the slots' rank": turn, "first, cold, of the slots' rank": {**turn, "ratio": 1.6},
                 "first, cold, of half of it": {**turn, "ratio": 1.3}},
        "memory": {"budget_bytes": 100.0, "most_bytes": 104.0, "growth_bytes": 2.0},
    }  # fmt: skip
    figures = switching_figures(found)
    values = [0.2, 0.1, 0.7, 0.95, 0.22 / 0.19, 1.4, 1.6, 1.3, 120.0, 50.0, 1500.0, 1.04, 0.02]
    assert [figure.value for figure in figures] == pytest.approx(values)
    assert [figure.reached for figure in figures] == [True, True, False, True, True, True, False, True, True, True, True, True, False]


def test_every_benchmark_is_in_the_index_and_starts_in_the_one_way() -> None:
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for program in BENCHMARKS.glob("*.py"):
        assert f"| `{program.stem}` |" in index
        assert f"    python -m benchmarks.{program.stem}" in program.read_text(encoding="utf-8")
        import_module(f"benchmarks.{program.stem}")  # what it takes from quad is there
