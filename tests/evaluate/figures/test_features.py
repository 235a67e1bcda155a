"""Feature metrics: zero for equals, and known values for known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from quad.evaluate.figures import features


def test_equals_are_at_distance_zero() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.random((3, 5, 4, 4)), rng.random((3, 8, 2, 2))]
    flat = rng.random((12, 6))
    np.testing.assert_allclose(features.lpips(maps, maps), 0, atol=1e-12)
    assert features.frechet(flat, flat) == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(features.structure(maps[0], maps[0]), 0)
    np.testing.assert_allclose(features.cosine(flat, 3 * flat), 1)


def test_frechet_of_a_shift_is_its_square() -> None:
    flat = np.random.default_rng(1).normal(size=(200, 4))
    assert features.frechet(flat, flat + np.array([1, 2, 0, 0])) == pytest.approx(5)


def test_frechet_against_the_textbook_form() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(70, 5)) @ rng.normal(size=(5, 5)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert features.frechet(a, b) == pytest.approx(float(wanted), rel=1e-6)


def test_lpips_ignores_the_length_of_features_and_grows_with_difference() -> None:
    rng = np.random.default_rng(3)
    x, noise = rng.random((2, 6, 4, 4)), rng.random((2, 6, 4, 4))
    np.testing.assert_allclose(features.lpips([x], [2 * x]), 0, atol=1e-12)
    near, far = features.lpips([x], [x + 0.1 * noise]), features.lpips([x], [x + noise])
    assert (near < far).all()


def test_direction_is_one_for_the_same_edit_and_minus_one_for_the_opposite() -> None:
    source, edit = np.ones((2, 3)), np.array([[1.0, 0, 0], [0, 2, 0]])
    np.testing.assert_allclose(features.direction(source, source + edit, source + 0.5 * edit), 1)
    np.testing.assert_allclose(features.direction(source, source + edit, source - edit), -1)
    np.testing.assert_allclose(features.direction(source, source, source), 1)
