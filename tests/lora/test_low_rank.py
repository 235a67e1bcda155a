"""The nearest matrices of a lower rank, in three forms of one update, against the plain singular value decomposition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from quad.core.errors import InputError, UsageError
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.layout import LayerLayout, NetworkLayout
from quad.lora.low_rank import Dense, Kronecker, Product, RankLimits, Update
from quad.lora.read import read_lora, reduced


def forms(seed: int, out: int, n: int, rank: int) -> list[Update]:
    draw = np.random.default_rng(seed)
    b, a = draw.normal(size=(out, rank)), draw.normal(size=(rank, n))
    kron = Kronecker(draw.normal(size=(2, 3)), draw.normal(size=(out, n)))
    return [Product(b, a), Dense(b @ a), Dense((b @ a).T), kron, Product(draw.normal(size=(out, out + n)), draw.normal(size=(out + n, n)))]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 99),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 15),
    st.sampled_from([0.5, 0.9, 0.999, 1.0]),
)
def test_no_matrices_of_that_rank_are_nearer(seed: int, out: int, n: int, rank: int, max_rank: int, keep: float) -> None:
    for update in forms(seed, out, n, rank):
        matrix = update.dense()
        cut = update.cut(max_rank, keep)
        rank_cut = cut.b.shape[1]
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        best = np.cumsum(squares) / squares.sum()
        assert 1 - ((matrix - cut.b @ cut.a) ** 2).sum() / (matrix**2).sum() == pytest.approx(cut.energy, abs=1e-9)
        assert cut.energy == pytest.approx(best[rank_cut - 1], abs=1e-9)
        assert rank_cut <= max_rank
        # As small as it may be: one less keeps too little, and no rank is spent on rounding.
        assert rank_cut == 1 or best[rank_cut - 2] < keep
        assert cut.energy >= keep - 1e-9 or rank_cut == max_rank


def test_halves_are_even_and_zero_is_zero() -> None:
    cut = Product(np.ones((6, 2)), 1e4 * np.ones((2, 5))).cut(2)
    assert cut.b.shape[1] == 1
    assert np.linalg.norm(cut.b) == pytest.approx(np.linalg.norm(cut.a))
    for update in (Product(np.zeros((6, 2)), np.ones((2, 5))), Dense(np.zeros((6, 5))), Kronecker(np.zeros((2, 2)), np.ones((3, 3)))):
        cut = update.cut(4)
        assert (cut.b.shape[1], cut.energy) == (1, 1.0)
        assert not (cut.b @ cut.a).any()


def adapter(decay: float) -> FloatAdapter:
    """One linear layer and one 3x3 convolution of rank 12 with falling singular values, and a layer of rank 2."""
    draw = np.random.default_rng(3)

    def pair(rank: int, outputs: int, *inputs: int) -> LowRank:
        a = np.linalg.qr(draw.normal(size=(int(np.prod(inputs)), rank)))[0].T.reshape(rank, *inputs)
        b = np.linalg.qr(draw.normal(size=(outputs, rank)))[0] * decay ** np.arange(rank)
        return LowRank(a.astype(np.float32), b.reshape(outputs, rank, *(1,) * (len(inputs) - 1)).astype(np.float32))

    weights = {"linear": pair(12, 30, 20), "conv": pair(12, 16, 8, 3, 3), "small": pair(2, 30, 20)}
    return FloatAdapter(name="ink", weights=weights, rank=12, digest="digest")


def test_reduced_keeps_what_it_says() -> None:
    full = adapter(0.7)
    small = reduced(full, 4)
    assert (small.rank, small.digest) == (4, "digest")
    assert small.weights["small"] is full.weights["small"]
    assert small.energy.keys() == {"linear", "conv"}
    want = sum(0.7 ** (2 * i) for i in range(4)) / sum(0.7 ** (2 * i) for i in range(12))
    for path in ("linear", "conv"):
        old, new = full.weights[path], small.weights[path]
        assert (new.a.shape, new.b.shape) == ((4, *old.a.shape[1:]), (old.b.shape[0], 4, *old.b.shape[2:]))
        before, after = (p.b.reshape(-1, p.rank) @ p.a.reshape(p.rank, -1) for p in (old, new))
        assert small.energy[path] == pytest.approx(want, rel=1e-5)
        assert 1 - ((before - after) ** 2).sum() / (before**2).sum() == pytest.approx(want, rel=1e-4)
    assert small.notes == (f"2 of 3 modules reduced to rank 4 or less, energy kept {want:.4f} at worst, {want:.4f} on average",)
    assert reduced(full, 12) is full
    assert reduced(full, 40) is full


def test_what_was_lost_before_counts() -> None:
    converted = replace(adapter(0.7), energy={"linear": 0.95, "small": 0.99})
    small = reduced(converted, 4, min_energy=0.8)
    assert small.energy["linear"] == pytest.approx(0.95 * small.energy["conv"], rel=1e-5)
    assert small.energy["small"] == 0.99
    with pytest.raises(
        InputError,
        match=r"expected 0.9 .*, found linear 0.8\d\d; raise --max-rank, or give it rank 12 of its own .*, or lower",
    ):
        reduced(replace(converted, energy={"linear": 0.91}), 4)


def test_below_the_floor_the_worst_modules_are_named() -> None:
    with pytest.raises(InputError) as caught:
        reduced(adapter(0.99), 3)
    assert "conv 0.2" in str(caught.value)
    assert "linear 0.2" in str(caught.value)
    assert "small" not in str(caught.value)
    assert reduced(adapter(0.99), 3, min_energy=0.2).rank == 3


@pytest.mark.parametrize(("limits", "option"), [(RankLimits(0), "--max-rank"), (RankLimits(4, 1.5), "--min-energy"),
                                                (RankLimits(4, float("nan")), "--min-energy")])  # fmt: skip
def test_limits_out_of_their_range(limits: RankLimits, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        limits.check()


def test_what_is_converted_has_a_limit_of_its_own_beside_that_of_all(tmp_path: Path) -> None:
    """A frozen slot of more rank than a conversion gives by itself takes more of it."""
    difference = np.random.default_rng(0).standard_normal((160, 160)).astype(np.float32)
    save_file({"lora_unet_q.diff": difference}, tmp_path / "a.safetensors")
    layout = NetworkLayout({"q": LayerLayout((160, 160))})
    limits = (RankLimits(None, 0.0), RankLimits(None, 0.0, 140), RankLimits(40, 0.0, 140))
    assert [read_lora("a", tmp_path / "a.safetensors", layout, limits=limit).rank for limit in limits] == [128, 140, 40]
