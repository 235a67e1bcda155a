"""A weight at 4 bits and its correction: the best product there is, and less error with every rank channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quad.quantize.correct.four_bits import four_bit_encoding, four_bit_weight, weighted_correction
from quad.quantize.correct.rounding import DAMPING
from tests.four_bits import product_of, values_of

Matrix = NDArray[np.float64]


@pytest.fixture(scope="module")
def inputs() -> Matrix:
    """`(24, 300)`: correlated, some directions a hundred times as loud as others."""
    draw = np.random.default_rng(0)
    turn = np.linalg.qr(draw.standard_normal((24, 24)))[0]
    return turn @ (draw.standard_normal((24, 300)) * np.logspace(0, -2, 24)[:, None])


@pytest.fixture(scope="module")
def weight() -> NDArray[np.float32]:
    return (np.random.default_rng(1).standard_normal((32, 24)) + 0.3).astype(np.float32)


def _error(weight: NDArray[np.float32], values: Matrix, inputs: Matrix) -> float:
    return float(np.square((values - weight) @ inputs).sum())


def test_every_weight_lies_on_one_of_16_steps(weight: NDArray[np.float32]) -> None:
    encoding = four_bit_encoding(weight)
    integers = encoding.quantize(weight)
    assert integers.min() >= 0
    assert integers.max() <= 15
    assert len(encoding.scale) == len(encoding.zero_point) == len(weight)
    np.testing.assert_allclose(encoding.dequantize(integers)[weight == 0.0], 0.0)
    clipped = np.abs(encoding.dequantize(integers) - weight).max(axis=1)
    assert (clipped <= np.asarray(encoding.scale) * 4).all()  # a range that is cut is cut by little


def test_signed_steps_have_no_zero_point(weight: NDArray[np.float32]) -> None:
    encoding = four_bit_encoding(weight, signed=True)
    integers = encoding.quantize(weight)
    assert encoding.stored_as == "int4"
    assert not any(encoding.zero_point)
    assert (integers.min(), integers.max()) == (-7, 7)
    assert np.abs(encoding.dequantize(integers) - weight).max() <= 4 * max(encoding.scale)


@pytest.mark.parametrize("rank", [1, 4, 24])
def test_no_product_of_that_rank_is_nearer(inputs: Matrix, weight: NDArray[np.float32], rank: int) -> None:
    encoding = four_bit_encoding(weight)
    error = (weight - encoding.dequantize(encoding.quantize(weight))).astype(np.float64)
    gram = inputs @ inputs.T
    metric = gram + DAMPING * gram.diagonal().mean() * np.eye(len(gram))
    root = np.linalg.cholesky(metric)
    values = np.linalg.svd(error @ root, compute_uv=False)
    least, all_of_it = float(np.square(values[rank:]).sum()), float(np.square(values).sum())
    product = product_of(weighted_correction(error, [torch.from_numpy(gram)], rank))
    left = float(np.square((error - product) @ root).sum())
    assert left <= least + 1e-3 * all_of_it  # bytes and a few turns take the rest


def test_a_correction_takes_back_and_more_rank_takes_back_more(inputs: Matrix, weight: NDArray[np.float32]) -> None:
    gram = [torch.from_numpy(inputs @ inputs.T)]
    for grams in (None, gram):
        errors = [_error(weight, values_of(four_bit_weight(weight, grams, rank=rank, metric=gram)), inputs) for rank in (0, 2, 8, 16)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.3 * errors[0]


def test_compensated_rounding_and_correction_together_are_nearest(inputs: Matrix, weight: NDArray[np.float32]) -> None:
    gram = [torch.from_numpy(inputs @ inputs.T)]
    nearest, compensated = (four_bit_weight(weight, grams, rank=4, metric=gram) for grams in (None, gram))
    assert _error(weight, values_of(compensated), inputs) < _error(weight, values_of(nearest), inputs)


def test_runs_of_inputs_and_kernels(weight: NDArray[np.float32], inputs: Matrix) -> None:
    """Two runs of channels are each a metric of their own; a convolution's taps are inputs."""
    halves = [torch.from_numpy(part @ part.T) for part in np.split(inputs, 2)]
    convolution = weight.reshape(32, 6, 2, 2)
    result = four_bit_weight(convolution, halves, rank=3, metric=halves)
    assert result.integers.shape == values_of(result).shape == convolution.shape
    assert result.correction is not None
    assert result.correction.a.shape == (3, 24)
    assert result.correction.b.shape == (32, 3)


def test_no_error_needs_no_correction() -> None:
    correction = weighted_correction(np.zeros((8, 6)), [torch.eye(6)], 2)
    np.testing.assert_array_equal(product_of(correction), np.zeros((8, 6)))
    assert np.isfinite(correction.scales).all()
