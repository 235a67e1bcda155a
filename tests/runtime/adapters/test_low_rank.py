"""The nearest sum of a smaller rank: as near as there is one, and inside what A, B and A x can hold."""

from __future__ import annotations

import numpy as np
import pytest

from quad.runtime.adapters.low_rank import MID_ROOM, Matrix, nearest

INT16 = 32767.0


def _sum(n: int, inputs: int, outputs: int, seed: int = 0, decay: float = 0.7) -> tuple[Matrix, Matrix]:
    """Factors with entries up to a lattice's end whose channels matter less and less."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-INT16, INT16, (n, inputs)), rng.uniform(-INT16, INT16, (outputs, n))
    return a, b * decay ** np.arange(n)


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 30), (12, 50), (50, 6), (3, 3)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_nothing_of_that_rank_is_nearer(inputs: int, outputs: int, rank: int) -> None:
    a, b = _sum(8, inputs, outputs)
    found = nearest(a, b, rank, np.inf)
    left, values, right = np.linalg.svd(b @ a, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    np.testing.assert_allclose(found.b @ found.a, best, rtol=0, atol=1e-9 * values[0])
    assert found.energy == pytest.approx(float(np.square(values[:rank]).sum() / np.square(values).sum()))


def test_a_sum_that_fits_is_kept_whole() -> None:
    a, b = _sum(8, 40, 30)
    twice = nearest(np.concatenate([a, a]), np.concatenate([b, b], axis=1), 8, np.inf)
    assert twice.energy == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(twice.b @ twice.a, 2 * b @ a, rtol=0, atol=1e-9 * np.abs(b @ a).max())


def test_parts_that_cancel_leave_nothing() -> None:
    a, b = _sum(4, 10, 10)
    gone = nearest(np.concatenate([a, a]), np.concatenate([b, -b], axis=1), 4, INT16)
    assert np.abs(gone.b @ gone.a).max(initial=0.0) <= 1e-9 * np.abs(b @ a).max()
    assert nearest(np.zeros((4, 10)), np.zeros((10, 4)), 2, INT16).energy == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_factors_stay_on_the_lattice_and_rows_of_a_stay_short(seed: int) -> None:
    a, b = _sum(12, 64, 48, seed)
    found = nearest(a, b / 2, 8, INT16)  # half: profiles leave B that room
    assert np.abs(found.a).max() <= INT16 * (1 + 1e-9)
    assert np.abs(found.b).max() <= INT16 * (1 + 1e-9)
    longest = np.linalg.norm(a, axis=1).max()
    assert np.linalg.norm(found.a, axis=1).max() <= MID_ROOM * longest * (1 + 1e-9)
    rounded = np.rint(found.b) @ np.rint(found.a)
    assert np.linalg.norm(rounded - found.b @ found.a) <= 1e-3 * np.linalg.norm(b @ a)


def test_no_channel_stands_out() -> None:
    """One strong direction among weak ones: as a channel of its own it would leave the lattice."""
    a, b = _sum(12, 64, 48)
    b[:, 0] *= 3.0
    found = nearest(a, b / 6, 8, INT16)
    peaks = np.abs(found.b).max(axis=0)
    assert peaks.max() < 3 * peaks.min()
