"""Timing arithmetic, and a peak of memory that is this process's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from quad.evaluate.bench import median_p95, milliseconds, peak_ram_bytes


def test_warm_up_calls_run_but_do_not_count() -> None:
    calls: list[int] = []
    times = milliseconds(lambda: calls.append(1), repeats=5, warm_up=2)
    assert len(calls) == 7
    assert len(times) == 5
    assert min(times) >= 0


def test_median_and_tail() -> None:
    found = median_p95([float(i) for i in range(1, 102)])
    assert found["median_ms"] == 51
    assert found["p95_ms"] == pytest.approx(96)


def test_peak_ram_of_a_child_is_not_its_parents() -> None:
    ballast = np.ones(80_000_000)
    code = "from quad.evaluate.bench import peak_ram_bytes; print(peak_ram_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_ram_bytes() >= ballast.nbytes
    assert 1_000_000 < child < ballast.nbytes
