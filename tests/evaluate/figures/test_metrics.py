"""Metrics by their laws, and against formulas written out the long way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quad.core.errors import InputError
from quad.evaluate.figures import metrics
from quad.zoo import draw, world
from quad.zoo.samples import sample


def _scene(seed: int) -> NDArray[np.uint8]:
    return draw.draw_scene(world.sample_scene(np.random.default_rng(seed)))


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1])
def test_psnr_of_known_noise(sigma: float) -> None:
    base = np.full((64, 64, 3), 0.5)
    noisy = base + np.random.default_rng(0).normal(0, sigma, base.shape)
    assert metrics.psnr(base, noisy) == pytest.approx(-20 * math.log10(sigma), abs=0.15)


def test_psnr_of_one_level_and_of_equals() -> None:
    a = np.full((16, 16, 3), 100, np.uint8)
    assert metrics.psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert metrics.psnr(a, a) == metrics.PSNR_CAP_DB


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_bytes_and_floats_are_the_same_picture(seed: int) -> None:
    a, b = _scene(seed), _scene(seed + 1)
    assert metrics.psnr(a, b) == pytest.approx(metrics.psnr(a / 255, b / 255))
    assert metrics.ssim(a, b) == pytest.approx(metrics.ssim(a / 255, b / 255))


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_ssim_is_one_for_equals_symmetric_and_below_one_else(seed: int) -> None:
    a, b = _scene(seed), _scene(seed + 1)
    assert metrics.ssim(a, a) == pytest.approx(1.0)
    assert metrics.ssim(a, b) == pytest.approx(metrics.ssim(b, a))
    assert metrics.ssim(a, b) < 1


def _ssim_the_long_way(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Wang et al. 2004 window by window, one channel at a time."""
    r = np.arange(11) - 5
    w = np.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    values = []
    for c in range(3):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(values))


def test_ssim_against_the_formula_written_out() -> None:
    rng = np.random.default_rng(1)
    a = rng.random((24, 19, 3))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    assert metrics.ssim(a, b) == pytest.approx(_ssim_the_long_way(a, b), abs=1e-10)


def test_psnr_inside_sees_only_the_inside() -> None:
    a = np.zeros((20, 20, 3), np.uint8)
    b, mask = a.copy(), np.zeros((20, 20), np.uint8)
    b[:5], mask[10:] = 255, 255
    assert metrics.psnr_inside(a, b, mask) == metrics.PSNR_CAP_DB
    b[10:] = 51
    assert metrics.psnr_inside(a, b, mask) == pytest.approx(20 * math.log10(5))


def test_an_empty_mask_and_unlike_shapes_are_refused() -> None:
    a = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(InputError, match="found an empty mask"):
        metrics.psnr_inside(a, a, np.zeros((20, 20), np.uint8))
    with pytest.raises(InputError, match="two pictures of one shape"):
        metrics.psnr(a, a[:10])
    with pytest.raises(InputError, match="at least 11 pixels"):
        metrics.ssim(a[:8], a[:8])


def test_fills_are_exact_on_what_they_assume() -> None:
    halves = np.zeros((20, 20, 3), np.uint8)
    halves[:, 10:] = 200
    mask = np.zeros((20, 20), np.uint8)
    mask[4:9, 2:7] = 255
    mask[12:17, 13:18] = 255
    np.testing.assert_array_equal(metrics.nearest_fill(halves, mask), halves)
    mask[12:17, 13:18] = 0
    np.testing.assert_array_equal(metrics.ring_fill(halves, mask), halves)


def test_nearest_fill_against_the_search_written_out() -> None:
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (15, 15, 3), dtype=np.uint8)
    mask = np.zeros((15, 15), np.uint8)
    mask[3:9, 4:12] = 255
    filled = metrics.nearest_fill(picture, mask)
    known = np.argwhere(mask == 0)
    for y, x in np.argwhere(mask > 0):
        distance = ((known - [y, x]) ** 2).sum(1)
        nearest = {picture[tuple(k)].tobytes() for k in known[distance == distance.min()]}
        assert filled[y, x].tobytes() in nearest
    np.testing.assert_array_equal(filled[mask == 0], picture[mask == 0])


def test_a_mask_over_all_leaves_the_picture() -> None:
    picture, mask = _scene(0), np.full((64, 64), 255, np.uint8)
    np.testing.assert_array_equal(metrics.nearest_fill(picture, mask), picture)
    np.testing.assert_array_equal(metrics.ring_fill(picture, mask), picture)


def test_grow_is_a_euclidean_disc() -> None:
    mask = np.zeros((11, 11), bool)
    mask[5, 5] = True
    y, x = np.mgrid[:11, :11] - 5
    np.testing.assert_array_equal(metrics.grow(mask, 3), x * x + y * y <= 9)
    np.testing.assert_array_equal(metrics.grow(mask, 0), mask)


def test_true_renders_agree_with_their_drawing_and_others_do_not() -> None:
    rows = [sample("sketch", 10**9 + i) for i in range(40)]
    own = [metrics.edge_agreement(row.truth, row.image) for row in rows if row.image is not None]
    wrong = [metrics.edge_agreement(rows[i - 1].truth, row.image) for i, row in enumerate(rows) if row.image is not None]
    assert min(own) > 0.85
    assert np.mean(own) > 0.97
    assert np.mean(wrong) < 0.75


def test_a_flat_picture_has_no_edges_and_a_blank_drawing_asks_for_none() -> None:
    flat = np.full((64, 64, 3), draw.WHITE, np.uint8)
    assert not metrics.edges(flat).any()
    assert metrics.edge_agreement(_scene(1), flat) == 1.0
    drawing = sample("sketch", 1).image
    assert drawing is not None
    assert metrics.edge_agreement(flat, drawing) == 0.0


def test_the_sticker_test_accepts_stickers_and_nothing_else() -> None:
    rows = [sample("sticker", 10**9 + i) for i in range(40)]
    assert all(metrics.is_sticker(row.truth) for row in rows)
    assert not any(metrics.is_sticker(row.image) for row in rows if row.image is not None)
    assert not metrics.is_sticker(np.full((64, 64, 3), draw.STICKER_GROUND, np.uint8))
    assert not any(metrics.is_sticker(sample("portrait", i).truth) for i in range(10))


def test_a_sticker_without_its_outline_is_none() -> None:
    row = sample("sticker", 10**9)
    assert not metrics.is_sticker(np.where(row.truth.min(axis=-1, keepdims=True) > 235, np.uint8(draw.STICKER_GROUND[0]), row.truth))
