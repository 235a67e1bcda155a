"""Integer kernels: the same numbers as the Q/DQ graph computed as written, for every geometry; what does not fit stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.compile.passes.conftest import Sketch, kept, operators

SCALE, ZERO = np.float32(0.04), np.uint8(101)
KERNEL = "MatMulIntegerToFloat"
GENERATOR = np.random.default_rng(7)


def quantized(sketch: Sketch, x: ir.Value, name: str, scale: float = SCALE, zero: np.generic = ZERO) -> ir.Value:
    """x -> Q -> DQ."""
    constants = [sketch.constant(f"{name}.s", np.float32(scale)), sketch.constant(f"{name}.z", zero)]
    shape = x.shape.numpy()
    q = sketch.value("QuantizeLinear", [x, *constants], *shape, dtype=ir.DataType.from_numpy(np.dtype(zero.dtype)))
    return sketch.value("DequantizeLinear", [q, *constants], *shape)


def weight(sketch: Sketch, name: str, shape: tuple[int, ...], axis: int | None) -> ir.Value:
    """int8 -> DQ, per channel where there is an axis."""
    integers = sketch.constant(name, GENERATOR.integers(-127, 128, shape, np.int8))
    size = () if axis is None else (shape[axis],)
    encoding = [sketch.constant(f"{name}.s", GENERATOR.uniform(0.001, 0.01, size).astype(np.float32)),
                sketch.constant(f"{name}.z", np.zeros(size, np.int8))]  # fmt: skip
    return sketch.value("DequantizeLinear", [integers, *encoding], *shape, **({} if axis is None else {"axis": axis}))


def convolution(kernel: int = 3, *, bias: bool = True, size: int = 6, halves: bool = False, batch: int = 1, **attributes: Any) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", batch, 4, size, size)
    y = quantized(sketch, x, "x.q")
    if halves:
        other = quantized(sketch, sketch.input("skip", batch, 2, size, size), "skip.q", 0.2, np.uint8(17))
        y = sketch.value("Concat", [y, other], batch, 6, size, size, axis=1)
    channels = 6 if halves else 4
    pads = attributes.get("pads", (0, 0, 0, 0))
    step = attributes.get("strides", (1, 1))
    shape = [(size + pads[k] + pads[k + 2] - kernel) // step[k] + 1 for k in (0, 1)]
    inputs = [y, weight(sketch, "conv.weight", (5, channels, kernel, kernel), 0), sketch.noise("conv.bias", 5) if bias else None]
    attributes = {name: list(value) for name, value in attributes.items()}
    return sketch.model(sketch.value("Conv", inputs, batch, 5, *shape, **attributes))


@pytest.mark.parametrize(
    "model",
    [
        convolution(1),
        convolution(3, pads=(1, 1, 1, 1)),
        convolution(3, pads=(1, 1, 1, 1), strides=(2, 2)),
        convolution(3, pads=(0, 2, 1, 0), strides=(2, 1), bias=False),
        convolution(3),
        convolution(1, strides=(2, 2)),
        convolution(1, pads=(1, 0, 0, 1)),
        convolution(3, pads=(1, 1, 1, 1), strides=(2, 2), batch=2),
    ],
    ids=["1x1", "3x3", "stride 2", "uneven, no bias", "no padding", "1x1 stride 2", "1x1 padded", "batch of 2"],
)
def test_a_convolution_is_a_matmul_on_integers(model: ir.Model) -> None:
    after, _ = kept(model, "integer_conv", "integer_matmul", tolerance=2e-6)
    assert (operators(after)["Conv"], operators(after)[KERNEL]) == (0, 1)
    assert not {"DequantizeLinear", "Add"} & set(operators(after))  # bias and scales went into the kernel


def test_a_skip_of_two_encodings_is_two_convolutions_on_integers() -> None:
    model = convolution(3, halves=True, pads=(1, 1, 1, 1))
    assert operators(kept(model, "split_concat", tolerance=2e-6)[0])["Conv"] == 2
    after, _ = kept(model, "split_concat", "integer_conv", "integer_matmul", tolerance=2e-6)
    assert (operators(after)["Conv"], operators(after)[KERNEL], operators(after)["Add"]) == (0, 2, 1)


def test_a_convolution_with_groups_or_float_input_stays() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 4, 6, 6)
    grouped = sketch.value("Conv", [quantized(sketch, x, "x.q"), weight(sketch, "a", (4, 1, 1, 1), 0)], 1, 4, 6, 6, group=4)
    plain = sketch.value("Conv", [x, weight(sketch, "b", (4, 4, 1, 1), 0)], 1, 4, 6, 6)
    wide = sketch.value("Conv", [quantized(sketch, x, "w.q", 1e-4, np.uint16(9)), weight(sketch, "c", (4, 4, 1, 1), 0)], 1, 4, 6, 6)
    model = sketch.model(grouped, plain, wide)
    assert operators(kept(model, "integer_conv", "integer_matmul")[0]) == operators(model)


@pytest.mark.parametrize(
    ("shape", "axis", "attributes"),
    [((4, 4), 0, {"dilations": [2, 2]}), ((6, 6), 0, {"auto_pad": "SAME_UPPER"}), ((4, 4), 1, {})],
    ids=["dilation", "padding by name", "a scale for each input channel"],
)
def test_a_convolution_that_a_matmul_does_not_write_stays(shape: tuple[int, int], axis: int, attributes: dict[str, Any]) -> None:
    sketch = Sketch()
    size = 8 if "dilations" in attributes else 6
    x = quantized(sketch, sketch.input("x", 1, 4, size, size), "x.q")
    model = sketch.model(sketch.value("Conv", [x, weight(sketch, "conv.weight", (4, 4, 3, 3), axis)], 1, 4, *shape, **attributes))
    assert operators(kept(model, "integer_conv", "integer_matmul", tolerance=2e-6)[0]) == operators(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axis", [1, None])
def test_a_linear_layer_is_one_kernel(bias: bool, axis: int | None) -> None:
    sketch = Sketch()
    x = quantized(sketch, sketch.input("x", 1, 7, 8), "x.q")
    y = sketch.value("MatMul", [x, weight(sketch, "fc.weight", (8, 6), axis)], 1, 7, 6)
    model = sketch.model(sketch.value("Add", [y, sketch.noise("fc.bias", 6)], 1, 7, 6) if bias else y)
    after, _ = kept(model, "integer_matmul", tolerance=2e-6)
    assert operators(after) == {"QuantizeLinear": 1, KERNEL: 1}


def test_a_gemm_of_a_weight_as_torch_stores_it_is_one_kernel() -> None:
    sketch = Sketch()
    x = quantized(sketch, sketch.input("x", 7, 8), "x.q")
    y = sketch.value("Gemm", [x, weight(sketch, "fc.weight", (6, 8), 0), sketch.noise("fc.bias", 6)], 7, 6, transB=1)
    after, _ = kept(sketch.model(y), "integer_matmul", tolerance=2e-6)
    assert operators(after) == {"QuantizeLinear": 1, KERNEL: 1}


def test_one_number_for_all_columns_is_no_bias() -> None:
    """The kernel reads a bias for each column, and would read beyond this one."""
    sketch = Sketch()
    x, y = (quantized(sketch, sketch.input(name, 7, 8), f"{name}.q") for name in "xy")
    first = sketch.value("Add", [sketch.value("MatMul", [x, weight(sketch, "a", (8, 6), 1)], 7, 6), sketch.noise("a.bias", 1)], 7, 6)
    second = sketch.value("Gemm", [y, weight(sketch, "b", (8, 6), 1), sketch.noise("b.bias", 1)], 7, 6)
    after, _ = kept(sketch.model(first, second), "integer_matmul", tolerance=2e-6)
    assert (operators(after)[KERNEL], operators(after)["Add"], operators(after)["Gemm"]) == (1, 1, 1)


def test_a_gemm_without_bias_is_one_kernel() -> None:
    sketch = Sketch()
    x = quantized(sketch, sketch.input("x", 7, 8), "x.q")
    after, _ = kept(sketch.model(sketch.value("Gemm", [x, weight(sketch, "w", (8, 6), 1), None], 7, 6)), "integer_matmul", tolerance=2e-6)
    assert operators(after) == {"QuantizeLinear": 1, KERNEL: 1}


def test_a_scale_for_each_input_channel_has_no_kernel() -> None:
    sketch = Sketch()
    x = quantized(sketch, sketch.input("x", 7, 8), "x.q")
    model = sketch.model(sketch.value("MatMul", [x, weight(sketch, "fc.weight", (8, 6), 0)], 7, 6))
    assert operators(kept(model, "integer_matmul")[0]) == operators(model)


def test_halves_come_out_of_their_own_matmuls() -> None:
    sketch = Sketch()
    x = quantized(sketch, sketch.input("x", 1, 7, 8), "x.q")
    y = sketch.value("Add", [sketch.value("MatMul", [x, weight(sketch, "w", (8, 10), 1)], 1, 7, 10), sketch.noise("b", 10)], 1, 7, 10)
    model = sketch.model(*sketch.values("Split", [y], [(1, 7, 5)] * 2, axis=2, num_outputs=2))
    after, _ = kept(model, "split_halves")
    assert (operators(after)["Split"], operators(after)["MatMul"]) == (0, 2)
    after, _ = kept(model, "split_halves", "integer_matmul", tolerance=2e-6)
    assert operators(after) == {"QuantizeLinear": 1, KERNEL: 2}


def test_a_half_that_nobody_reads_goes() -> None:
    sketch = Sketch()
    product = sketch.value("MatMul", [sketch.input("x", 1, 7, 8), sketch.noise("w", 8, 10)], 1, 7, 10)
    y = sketch.value("Add", [product, sketch.noise("b", 10)], 1, 7, 10)
    model = sketch.model(sketch.values("Split", [y], [(1, 7, 5)] * 2, axis=2, num_outputs=2)[0])
    after, _ = kept(model, "split_halves", "drop_dead")
    assert operators(after) == {"MatMul": 1, "Add": 1}


def test_halves_of_a_sum_with_one_number_stay() -> None:
    sketch = Sketch()
    product = sketch.value("MatMul", [sketch.input("x", 1, 7, 8), sketch.noise("w", 8, 10)], 1, 7, 10)
    y = sketch.value("Add", [product, sketch.noise("b", 1)], 1, 7, 10)
    model = sketch.model(*sketch.values("Split", [y], [(1, 7, 5)] * 2, axis=2, num_outputs=2))
    assert operators(kept(model, "split_halves")[0]) == operators(model)


def test_a_split_of_tokens_stays() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 8, 8)
    y = sketch.value("Add", [sketch.value("MatMul", [x, sketch.noise("w", 8, 6)], 1, 8, 6), sketch.noise("b", 6)], 1, 8, 6)
    model = sketch.model(*sketch.values("Split", [y], [(1, 4, 6)] * 2, axis=1, num_outputs=2))
    assert operators(kept(model, "split_halves")[0]) == operators(model)
