"""Compensated rounding: the integers of the published rule, less noise on correlated inputs, the nearest where there is nothing to use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quad.quantize.correct.rounding import DAMPING, compensated_integers
from quad.quantize.encodings.ranges import RangeOptions, weight_encoding


def correlated(inputs: int, calls: int, seed: int = 0) -> NDArray[np.float32]:
    """`(inputs, calls)`: neighbours are alike, as the taps of a convolution are, and some inputs are louder than others."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(inputs + 4, calls))
    loud = np.exp(rng.normal(size=(inputs, 1)))
    return (loud * sum(noise[k : k + inputs] for k in range(5))).astype(np.float32)


def published(weight: NDArray[np.float32], scale: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """GPTQ as its paper writes it: errors are pushed into the columns to come by the Cholesky factor of the inverse."""
    order = np.argsort(-np.diag(gram), kind="stable")
    damped = gram[np.ix_(order, order)] + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, integers = weight.astype(np.float64)[:, order], np.zeros(weight.shape)
    for j in range(len(gram)):
        integers[:, j] = np.clip(np.rint(left[:, j] / scale), -127, 127)
        error = (left[:, j] - integers[:, j] * scale) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    return integers[:, np.argsort(order)]


def noise(error: NDArray[np.floating], x: NDArray[np.float32]) -> float:
    return float(np.square(error.reshape(len(error), -1).astype(np.float64) @ x).sum())


@pytest.fixture(scope="module")
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(24, 10, 3, 3)).astype(np.float32)


def test_the_integers_of_the_published_rule(weight: NDArray[np.float32]) -> None:
    encoding, x = weight_encoding(weight, 8, RangeOptions()), correlated(90, 400)
    gram = torch.from_numpy(x @ x.T)
    integers = compensated_integers(weight, encoding, [gram])
    assert integers.dtype == np.int8
    assert integers.shape == weight.shape
    expected = published(weight.reshape(24, -1), np.asarray(encoding.scale, np.float32).astype(np.float64), gram.double().numpy())
    assert np.mean(integers.reshape(24, -1) == expected) > 0.999


def test_less_noise_on_inputs_of_their_kind(weight: NDArray[np.float32]) -> None:
    encoding, x, other = weight_encoding(weight, 8, RangeOptions()), correlated(90, 400), correlated(90, 400, 7)[:, :200]
    other = other * (np.abs(x).mean(1) / np.abs(other).mean(1))[:, None]
    nearest = noise(encoding.dequantize(encoding.quantize(weight)) - weight, other)
    for runs in (1, 2):
        integers = compensated_integers(weight, encoding, [torch.from_numpy(part @ part.T) for part in np.split(x, runs)])
        assert noise(encoding.dequantize(integers) - weight, other) < 0.4 * nearest


def test_without_correlation_or_inputs_it_is_the_nearest(weight: NDArray[np.float32]) -> None:
    encoding = weight_encoding(weight, 8, RangeOptions())
    for gram in (torch.diag(torch.rand(90) + 0.1), torch.zeros(90, 90)):
        np.testing.assert_array_equal(compensated_integers(weight, encoding, [gram]), encoding.quantize(weight))


def test_what_lies_on_the_lattice_stays(weight: NDArray[np.float32]) -> None:
    encoding, x = weight_encoding(weight, 8, RangeOptions()), correlated(90, 400)
    integers = compensated_integers(weight, encoding, [torch.from_numpy(x @ x.T)])
    np.testing.assert_array_equal(encoding.quantize(encoding.dequantize(integers)), integers)


def test_a_matrix_that_float32_cannot_factor_is_factored_in_float64(weight: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, x = weight_encoding(weight, 8, RangeOptions()), correlated(90, 400)
    grams = [torch.from_numpy(x @ x.T)]
    integers = compensated_integers(weight, encoding, grams)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: (torch.full_like(matrix, torch.nan), torch.tensor(3)))
    assert np.mean(compensated_integers(weight, encoding, grams) == integers) > 0.999
