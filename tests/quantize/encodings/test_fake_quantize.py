"""The torch twins give NumPy's integers, law 5 holds, and gradients pass where nothing is clipped."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quad.core.encoding import Encoding, encode_range
from quad.quantize.encodings.fake_quantize import FakeQuantizer, dequantize, fake_quantize, quantize

KINDS = ((8, True, True), (8, False, False), (8, True, False), (16, True, True), (16, False, False), (16, True, False), (32, True, True))
VALUES = st.floats(-1e4, 1e4, width=32)
TENSORS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=VALUES)
BOUNDS = st.tuples(st.floats(-1e4, 0.0, width=32), st.floats(0.0, 1e4, width=32))


@st.composite
def encodings(draw: st.DrawFn, tensor: np.ndarray) -> Encoding:
    bits, signed, symmetric = draw(st.sampled_from(KINDS))
    axis = draw(st.sampled_from([None, *range(tensor.ndim)])) if symmetric else None
    channels = 1 if axis is None else tensor.shape[axis]
    pairs = draw(st.lists(BOUNDS, min_size=channels, max_size=channels))
    low, high = np.asarray(pairs, dtype=np.float64).T
    return encode_range(low, high, bits=bits, signed=signed, symmetric=symmetric, axis=axis)


@settings(max_examples=60, deadline=None)
@given(st.data(), TENSORS)
def test_integers_and_values_are_numpys(data: st.DataObject, tensor: np.ndarray) -> None:
    encoding = data.draw(encodings(tensor))
    expected = encoding.quantize(tensor)
    found = quantize(torch.from_numpy(tensor), encoding)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.int64))
    np.testing.assert_array_equal(dequantize(found, encoding).numpy(), encoding.dequantize(expected))
    np.testing.assert_array_equal(fake_quantize(torch.from_numpy(tensor), encoding).numpy(), encoding.dequantize(expected))


@settings(max_examples=60, deadline=None)
@given(st.data(), TENSORS)
def test_law_5_half_a_step_where_not_clipped(data: st.DataObject, tensor: np.ndarray) -> None:
    encoding = data.draw(encodings(tensor))
    integers = encoding.quantize(tensor).astype(np.int64)
    scale, _ = encoding.broadcast(tensor.ndim)
    error = np.abs(fake_quantize(torch.from_numpy(tensor), encoding).numpy().astype(np.float64) - tensor)
    # Float32 itself rounds T / s and s q, one part in 2**23 each of the value.
    allowed = scale.astype(np.float64) / 2 + np.abs(tensor) * 2.0**-22
    inside = (integers > encoding.qmin) & (integers < encoding.qmax)
    assert (error <= allowed)[inside].all()


@settings(max_examples=40, deadline=None)
@given(st.data(), TENSORS)
def test_zero_is_exact_and_quantizing_twice_is_once(data: st.DataObject, tensor: np.ndarray) -> None:
    encoding = data.draw(encodings(tensor))
    assert not fake_quantize(torch.zeros(tensor.shape), encoding).any()
    if encoding.bits < 32:  # 2**31 steps are finer than float32 itself
        once = fake_quantize(torch.from_numpy(tensor), encoding)
        assert torch.equal(fake_quantize(once, encoding), once)


def test_gradient_is_one_inside_and_zero_where_clipped() -> None:
    encoding = encode_range(-1.0, 1.0, bits=8, signed=True, symmetric=True)
    tensor = torch.tensor([-2.0, -0.5, 0.0, 0.99, 1.5], requires_grad=True)
    fake_quantize(tensor, encoding).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_one_quantizer_serves_tensors_of_several_ranks() -> None:
    encoding = encode_range(np.full(3, -1.0), np.full(3, 1.0), bits=8, signed=True, symmetric=True, axis=0)
    quantizer = FakeQuantizer(encoding)
    for shape in ((3, 4), (3, 4, 2, 2), (3, 4)):
        tensor = torch.rand(shape)
        assert torch.equal(quantizer(tensor), fake_quantize(tensor, encoding))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_clipped_like_numpys(value: float) -> None:
    encoding = encode_range(-1.0, 2.0, bits=16, signed=False, symmetric=False)
    tensor = np.array([value], dtype=np.float32)
    assert quantize(torch.from_numpy(tensor), encoding).item() == encoding.quantize(tensor).item()
