"""What a frozen range cuts off is read right, on either side of it, and reading it keeps no activation in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quad.admit.observed_graph import float_activations, observed_graph
from quad.admit.sites import ObservedGraph, unrounded_outputs
from quad.core.encoding import Encoding
from quad.core.errors import BackendError

STEP = 0.5


def chain(path: Path, sites: int, encoding: Encoding, shape: tuple[int, ...], weight: tuple[int, ...] = ()) -> Path:
    """`sample` through so many sites of one encoding, each with a weight of ones behind it, and its mean."""
    x = ir.Value(name="sample", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    numbers: dict[str, Any] = {"scale": np.float32(encoding.scale[0]), "zero": encoding.dtype.type(encoding.zero_point[0])}
    numbers["factor"] = np.ones(weight, np.float32)
    scale, zero, factor = (ir.Value(name=name, const_value=ir.tensor(np.array(number), name=name)) for name, number in numbers.items())
    nodes, read = [], x
    for site in range(sites):
        nodes.append(ir.node("QuantizeLinear", [read, scale, zero], name=f"site{site}/Q"))
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero]))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor]))
        read = nodes[-1].outputs[0]
    nodes.append(ir.node("ReduceMean", [read], {"keepdims": 0}))
    out = nodes[-1].outputs[0]
    out.name, out.dtype, out.shape = "out", ir.DataType.FLOAT, ir.Shape([])
    ir.save(ir.Model(ir.Graph([x], [out], nodes=nodes, initializers=[scale, zero, factor], opset_imports={"": 21}), ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("encoding", "low", "high"),
    [
        (Encoding(bits=8, signed=False, symmetric=False, scale=(STEP,), zero_point=(100,)), -100, 155),
        (Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,)), -128, 127),
        (Encoding(bits=16, signed=False, symmetric=False, scale=(STEP,), zero_point=(1000,)), -1000, 64535),
    ],
)
def test_what_a_range_cuts_off(encoding: Encoding, low: int, high: int, tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", 1, encoding, (1, 4))
    observed = ObservedGraph(model)
    assert not observed.unread
    # Half a step beyond either end is rounded to the end: nothing is lost.
    below, above = (low - 0.5) * STEP, (high + 0.5) * STEP

    def use(*values: float) -> tuple[float, float]:
        found = observed.uses([{"sample": np.array([values], np.float32)}], {})["site0"]
        return found.lost, found.reach

    assert use(below, above, 0.0, 1.0) == (0.0, 1.0)
    assert use(0.0, 0.0, 0.0, 0.0) == (0.0, 0.0)
    assert use(above / 2, 0.0, below / 4, 0.0) == (0.0, pytest.approx(0.5))
    assert use(2 * above, 0.0, 0.0, 0.0) == (pytest.approx(0.25), pytest.approx(2.0))
    assert use(3 * below, 0.0, 0.0, 0.0) == (pytest.approx(4 / 9), pytest.approx(3.0))
    assert use(np.nan, 0.0, 0.0, 0.0) == (1.0, np.inf)


def test_the_worst_call_counts_and_the_graph_is_only_read(tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", 2, Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,)), (1, 4))
    before = model.read_bytes()
    quiet, loud = np.ones((1, 4), np.float32), np.array([[1.0, 127.5, 1.0, 1.0]], np.float32)
    found = ObservedGraph(model).uses([{"sample": quiet}, {"sample": loud}, {"sample": quiet}], {})
    assert found["site0"].lost == pytest.approx((127.5 - 63.75) ** 2 / (127.5**2 + 3), rel=1e-5)
    assert found["site1"].lost == 0.0  # what the first has cut off does not reach it
    assert model.read_bytes() == before


def deep(path: Path, layers: int, size: int) -> Path:
    """`sample` through layers of a site, a weight of 8 bits that becomes floats at the graph's beginning, and an operator that the engine
    replaces by others at its end.
    """
    x = ir.Value(name="sample", shape=ir.Shape((1, size)), type=ir.TensorType(ir.DataType.FLOAT))
    numbers = {"scale": np.float32(STEP), "zero": np.uint16(1000), "step": np.float32(1), "weight": np.ones((1, size), np.int8)}
    constants = [ir.Value(name=name, const_value=ir.tensor(np.array(number), name=name)) for name, number in numbers.items()]
    scale, zero, step, weight = constants
    floats = [ir.node("DequantizeLinear", [weight, step]) for _ in range(layers)]
    nodes, read = [*floats], x
    for layer in range(layers):
        nodes.append(ir.node("QuantizeLinear", [read, scale, zero], name=f"site{layer}/Q"))
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero]))
        nodes.append(ir.node("HardSwish", [nodes[-1].outputs[0]]))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], floats[layer].outputs[0]]))
        read = nodes[-1].outputs[0]
    nodes.append(ir.node("ReduceMean", [read], {"keepdims": 0}))
    out = nodes[-1].outputs[0]
    out.name, out.dtype, out.shape = "out", ir.DataType.FLOAT, ir.Shape([])
    ir.save(ir.Model(ir.Graph([x], [out], nodes=nodes, initializers=constants, opset_imports={"": 21}), ir_version=10), path)
    return path


# In a process of its own: the peak of a process never falls.
MEASURE = """
import sys
import numpy as np
from quad.admit.sites import ObservedGraph
from quad.core.memory import reset_peak, peak_ram_bytes
from pathlib import Path
call = {"sample": np.ones((1, 2**21), np.float32)}
reset_peak()
before = peak_ram_bytes()
ObservedGraph(Path(sys.argv[1])).uses([call], {})
print(peak_ram_bytes() - before)
"""


def test_no_activation_is_kept(tmp_path: Path) -> None:
    sites, size = 24, 2**21 * 4
    model = chain(
        tmp_path / "model.onnx", sites, Encoding(bits=16, signed=False, symmetric=False, scale=(STEP,), zero_point=(1000,)), (1, 2**21)
    )
    done = subprocess.run([sys.executable, "-c", MEASURE, model], check=True, capture_output=True, text=True)
    # A site's own few: x, what is cut off it, and its integers.
    assert int(done.stdout) < sites / 2 * size


def test_no_weight_is_kept_as_floats(tmp_path: Path) -> None:
    layers, size = 24, 2**21 * 4
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, deep(tmp_path / "model.onnx", layers, 2**21)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < layers / 2 * size


def test_weights_stay_beside_the_graph_and_all_else_stays_in_it(tmp_path: Path) -> None:
    """What the numbers added taken away again, the file says what it said before; the weights' file is read where it lies."""
    encoding = Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,))
    model = chain(tmp_path / "inline.onnx", 2, encoding, (1, 4), weight=(1, 4))
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    ir.save(ir.load(model), apart, external_data="model.onnx.data", size_threshold_bytes=8)
    assert apart.with_suffix(".onnx.data").stat().st_size == 16
    data, ranges = observed_graph(apart.read_bytes())
    assert list(ranges) == ["site0", "site1"]
    before, after = (onnx.load_model_from_string(text) for text in (apart.read_bytes(), data))
    del after.graph.output[len(before.graph.output) :], after.graph.initializer[len(before.graph.initializer) :]
    kept = [node for node in after.graph.node if not any(name.startswith(("site0/", "site1/")) for name in node.output)]
    del after.graph.node[:]
    after.graph.node.extend(kept)
    assert after == before
    call = [{"sample": np.array([[1.0, 127.5, 1.0, 1.0]], np.float32)}]
    assert ObservedGraph(apart).uses(call, {}) == ObservedGraph(model).uses(call, {})


def test_activations_left_as_floats_are_neither_rounded_nor_cut_off(tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", 2, Encoding(bits=8, signed=True, symmetric=True, scale=(STEP,), zero_point=(0,)), (1, 4))
    calls = [np.array([values], np.float32) for values in ([1000.0, 0.1, -0.2, 0.3], [0.1, 0.2, 0.1, 0.2])]
    answers = unrounded_outputs(model, [({}, {"sample": call}) for call in calls], at_once=2)
    np.testing.assert_allclose(answers, [call.mean() for call in calls], rtol=1e-6)
    data = float_activations(model.read_bytes())
    assert answers is not None
    assert data is not None
    left = onnx.load_model_from_string(data).graph
    assert [node.op_type for node in left.node] == ["Mul", "Mul", "ReduceMean"]


def test_weights_stay_on_their_lattice_where_activations_are_floats(tmp_path: Path) -> None:
    model = deep(tmp_path / "model.onnx", 2, 4)
    answers, data = unrounded_outputs(model, [({}, {"sample": np.full((1, 4), 5e4, np.float32)})]), float_activations(model.read_bytes())
    assert answers is not None
    assert data is not None
    np.testing.assert_allclose(answers[0], 5e4, rtol=1e-6)  # HardSwish is the identity there, weights are ones
    kinds = [node.op_type for node in onnx.load_model_from_string(data).graph.node]
    assert kinds.count("DequantizeLinear") == 2
    assert "QuantizeLinear" not in kinds


def integer_kernel(path: Path, reader: str) -> tuple[Path, np.ndarray]:
    """`sample` (1, 2, 3) rounded to 8 bits, padded by one row, and multiplied by 8-bit weights in integers; and what that is of floats."""
    weight, step, bias = np.array([[1, -2], [3, 4], [5, 6]], np.int8), np.array([0.5, 0.25], np.float32), np.array([1.0, -1.0], np.float32)
    numbers: dict[str, Any] = {"scale": np.float32(STEP), "zero": np.uint8(100), "weight": weight, "step": step, "bias": bias}
    numbers["pads"] = np.array([0, 0, 0, 0, 1, 0])
    tensors = [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers.items()]
    make, info = helper.make_node, helper.make_tensor_value_info
    product = ["padded", "weight", "scale", "step", "zero", "", "bias"]
    nodes = [
        make("QuantizeLinear", ["sample", "scale", "zero"], ["rounded"], name="site0/Q"),
        make("Pad", ["rounded", "pads", "zero"], ["padded"]),
        make("MatMulIntegerToFloat", product, ["out"], domain="com.microsoft")
        if reader == "kernel"
        else make("Cast", ["padded"], ["out"], to=1),
    ]
    shapes = [info("sample", 1, [1, 2, 3])], [info("out", 1, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "kernel", *shapes, tensors, value_info=[info("padded", TensorProto.UINT8, [1, 3, 3])])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    sample = np.array([[[1000.0, 0.1, -0.2], [-999.0, 0.3, 7.0]]], np.float32)
    return path, np.pad(sample, ((0, 0), (0, 1), (0, 0))) @ (weight * step) + bias


def test_an_integer_kernel_reads_floats_too(tmp_path: Path) -> None:
    model, true = integer_kernel(tmp_path / "model.onnx", "kernel")
    sample = np.array([[[1000.0, 0.1, -0.2], [-999.0, 0.3, 7.0]]], np.float32)
    answers = unrounded_outputs(model, [({}, {"sample": sample})])
    assert answers is not None
    np.testing.assert_allclose(answers[0], true, rtol=1e-6)
    clipped = ort.InferenceSession(model).run(None, {"sample": sample})[0]
    assert np.abs(clipped - true).max() > 100


def test_a_product_of_two_activations_in_integers_is_one_of_floats(tmp_path: Path) -> None:
    numbers = {"scale": np.float32(STEP), "zero": np.uint8(100), "centre": np.int8(0)}
    tensors = [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers.items()]
    make, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("QuantizeLinear", ["sample", "scale", "zero"], ["left"], name="site0/Q"),
        make("QuantizeLinear", ["sample", "scale", "centre"], ["rows"], name="site1/Q"),
        make("Transpose", ["rows"], ["right"], perm=[1, 0]),
        make("MatMulIntegerToFloat", ["left", "right", "scale", "scale", "zero", "centre"], ["out"], domain="com.microsoft"),
    ]
    graph = helper.make_graph(nodes, "products", [info("sample", 1, [2, 3])], [info("out", 1, None)], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    sample = np.array([[1000.0, 0.1, -0.2], [-999.0, 0.3, 7.0]], np.float32)
    answers = unrounded_outputs(tmp_path / "model.onnx", [({}, {"sample": sample})])
    assert answers is not None
    np.testing.assert_allclose(answers[0], sample @ sample.T, rtol=1e-5)


def test_integers_that_something_else_reads_cannot_be_left_out(tmp_path: Path) -> None:
    assert float_activations(integer_kernel(tmp_path / "model.onnx", "cast")[0].read_bytes()) is None


def test_what_is_no_graph_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="an ONNX graph"):
        observed_graph(b"\xff" * 32)
