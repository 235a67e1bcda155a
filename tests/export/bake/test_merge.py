"""A merged weight is the exact sum to half a step, and lies in the graph as it lay before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from quad.core.slots import Slot
from quad.export.bake.layout import WeightLayout
from quad.export.bake.merge import LatticeWeight, merged

RNG = np.random.default_rng(0)
SCALES = np.array([1e-3, 2e-3, 1e-2], np.float32)
WEIGHT = LatticeWeight(array=RNG.integers(-127, 128, (3, 5, 2, 2)).astype(np.int8), scale=SCALES, axis=0)


def _exact(weight: LatticeWeight, update: np.ndarray) -> np.ndarray:
    assert weight.scale is not None
    return weight.array * weight.scale.astype(np.float64)[:, None, None, None] + update


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("bits", [None, 16])
def test_nothing_is_off_by_more_than_half_a_step_and_nothing_is_clipped(size: float, bits: int | None) -> None:
    update = size * RNG.standard_normal(WEIGHT.array.shape)
    after = merged(WEIGHT, update, bits)
    assert after.scale is not None
    assert after.array.dtype == (np.int16 if bits else np.int8)
    error = np.abs(_exact(after, 0.0) - _exact(WEIGHT, update)).max(axis=(1, 2, 3))
    assert (error <= after.scale * (0.5 + 1e-6)).all()
    assert np.abs(after.array.astype(int)).max() <= np.iinfo(after.array.dtype).max


def test_a_channel_that_is_not_touched_keeps_its_integers_and_its_step() -> None:
    update = np.zeros(WEIGHT.array.shape)
    update[1] = 0.5
    after = merged(WEIGHT, update)
    assert after.scale is not None
    assert (after.array[[0, 2]] == WEIGHT.array[[0, 2]]).all()
    assert (after.scale[[0, 2]] == SCALES[[0, 2]]).all()
    assert after.scale[1] > SCALES[1]


def test_one_scale_for_all_widens_as_a_whole_and_floats_are_added() -> None:
    weight = LatticeWeight(array=WEIGHT.array, scale=np.array(1e-3, np.float32))
    after = merged(weight, np.full(weight.array.shape, 1.0))
    assert after.scale is not None
    assert after.scale.shape == ()
    assert after.array.max() == 127
    floats = LatticeWeight(array=np.ones((2, 2), np.float32))
    assert (merged(floats, np.full((2, 2), 0.25)).array == np.float32(1.25)).all()


def _slot(kind: str, kernel: tuple[int, int] = (1, 1)) -> Slot:
    return Slot(path="layer", kind=kind, in_features=3, out_features=4, rank=2, kernel=kernel)  # type: ignore[arg-type]


def _node(op: str, **attributes: int) -> ir.Node:
    return ir.node(op, [ir.Value(name="x"), ir.Value(name="w")], attributes=attributes)


def test_a_matrix_of_a_linear_layer_multiplies_as_its_parameter_does() -> None:
    parameter, x = RNG.standard_normal((4, 3)), RNG.standard_normal(3)
    for node in (_node("MatMul"), _node("Gemm", transB=0), _node("Gemm", transB=1), _node("Conv")):
        layout = WeightLayout.of(node, _slot("linear"))
        stored = layout.stored(parameter)
        back = layout.parameter(stored)
        assert back is not None
        assert (back == parameter).all()
        matrix = stored[:, :, 0, 0] if stored.ndim == 4 else stored
        assert matrix.shape[layout.channel_axis] == 4
        np.testing.assert_allclose(matrix @ x if layout.channel_axis == 0 else x @ matrix, parameter @ x)


def test_a_matrix_of_a_convolution_multiplies_its_taps_side_by_side() -> None:
    parameter, patch = RNG.standard_normal((4, 3, 2, 2)), RNG.standard_normal((3, 2, 2))
    layout = WeightLayout.of(_node("MatMul"), _slot("conv", (2, 2)))
    taps = np.concatenate([patch[:, row, column] for row, column in np.ndindex(2, 2)])  # as `integer_conv` lays them
    np.testing.assert_allclose(taps @ layout.stored(parameter), np.einsum("oirc,irc->o", parameter, patch))
    back = layout.parameter(layout.stored(parameter))
    assert back is not None
    assert (back == parameter).all()


def test_what_cannot_be_the_layers_weight_is_none() -> None:
    assert WeightLayout.of(_node("MatMul"), _slot("linear")).parameter(np.zeros((3, 5))) is None
    assert WeightLayout.of(_node("MatMul"), _slot("conv", (2, 2))).parameter(np.zeros((13, 4))) is None
    assert WeightLayout.of(_node("Conv"), _slot("conv", (3, 3))).parameter(np.zeros((4, 3, 1, 1))) is None
