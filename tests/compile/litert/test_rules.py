"""Each rule alone: LiteRT's kernels on the lowered graph against ONNX Runtime on the placed one, on random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("ai_edge_litert")

from quad.compile.litert.audit import audit
from quad.compile.litert.flatbuffer import read_operators, serialize
from quad.compile.litert.interpreter import TfliteRunner
from quad.compile.litert.rules import RULES, lower
from quad.compile.passes import run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, integer_feeds, lower_layers, place_integers
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.decibels import array_sqnr_db
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import UnsupportedError
from quad.quantize.encodings.ranges import RangeOptions, weight_encoding
from quad.runtime.engines.ort import session_options

TARGET = load_target("litert")
OPSET = 21
W8, W16, TABLE = "layer.weight", "fine.weight", "table.weight"
TABLES = ("Gelu", "Sigmoid", "Softmax", "Tanh", "Pow")  # computed by table: not to the step
Array = NDArray[Any]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return rng().standard_normal(shape).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A graph of one operator, or of a few that make sense together.

    Args:
        nodes: of ONNX.
        inputs: by name, with the numbers that are fed.
        constants: by name.
        kinds: operators of the file, in order.
    """

    nodes: Sequence[onnx.NodeProto]
    inputs: Mapping[str, Array]
    constants: Mapping[str, Array] = field(default_factory=dict)
    kinds: Sequence[str] = ()

    def model(self) -> ir.Model:
        types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int32): TensorProto.INT32}
        graph = helper.make_graph(
            list(self.nodes), "case",
            [helper.make_tensor_value_info(name, types[array.dtype], array.shape) for name, array in self.inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
        return ir.from_proto(inferred)

    def profile(self) -> dict[str, Encoding]:
        """Of weights per output channel, and of the table."""
        encodings = {}
        for name, array in self.constants.items():
            if name == TABLE:
                encodings[name] = encode_range(array.min(), array.max(), bits=16, signed=True, symmetric=True)
            elif name in (W8, W16):
                encodings[name] = weight_encoding(array, 16 if name == W16 else 8, RangeOptions()).within(TARGET.int16_largest)
        return encodings


def node(op: str, inputs: Sequence[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"{op}/{output}", **attributes)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


X, XC, W = normal(1, 6, 8), normal(1, 4, 6, 6), normal(5, 4, 3, 3)
CASES = {
    "add": Case(nodes=[node("Add", "xz")], inputs={"x": X, "z": 2 * X[:, ::-1].copy()}, kinds=["ADD"]),
    "add a row": Case(nodes=[node("Add", "xz")], inputs={"x": X, "z": X[0, :1].copy()}, kinds=["RESHAPE", "ADD"]),
    "subtract a column": Case(nodes=[node("Sub", "xz")], inputs={"x": X, "z": X[:, :, :1].copy()}, kinds=["SUB"]),
    "multiply by a constant": Case(nodes=[node("Mul", "xk")], inputs={"x": X}, constants={"k": normal(8)}, kinds=["MUL"]),
    "relu": Case(nodes=[node("Relu", "x")], inputs={"x": X}, kinds=["RELU"]),
    "sigmoid": Case(nodes=[node("Sigmoid", "x")], inputs={"x": X}, kinds=["LOGISTIC"]),
    "tanh": Case(nodes=[node("Tanh", "x")], inputs={"x": X}, kinds=["TANH"]),
    "gelu": Case(nodes=[node("Gelu", "x")], inputs={"x": X}, kinds=["GELU"]),
    "softmax": Case(nodes=[node("Softmax", "x", axis=-1)], inputs={"x": 3 * X}, kinds=["SOFTMAX"]),
    "inverse root": Case(nodes=[node("Pow", "xk")], inputs={"x": np.abs(X) + 1}, constants={"k": np.array(-0.5, np.float32)},
                         kinds=["QUANTIZE", "RSQRT", "RSQRT", "SUB", "RELU", "SUB"]),
    "mean": Case(nodes=[node("ReduceMean", "xk", keepdims=1)], inputs={"x": X + 1}, constants={"k": ints(-1)}, kinds=["MEAN"]),
    "reshape": Case(nodes=[node("Reshape", "xk")], inputs={"x": X}, constants={"k": ints(6, 2, 4)}, kinds=["RESHAPE"]),
    "transpose": Case(nodes=[node("Transpose", "x", perm=[0, 2, 1])], inputs={"x": X}, kinds=["TRANSPOSE"]),
    "two transposes": Case(nodes=[node("Transpose", "x", "t", perm=[2, 0, 1]), node("Transpose", "t", perm=[1, 2, 0])], inputs={"x": X},
                           kinds=["RESHAPE"]),
    "concat of two encodings": Case(nodes=[node("Concat", "xz", axis=1)], inputs={"x": X, "z": 3 * X}, kinds=["QUANTIZE", "CONCATENATION"]),
    "slice": Case(nodes=[node("Slice", "xabc")], inputs={"x": X}, constants={"a": ints(1), "b": ints(-1), "c": ints(1)}, kinds=["SLICE"]),
    "gather": Case(nodes=[node("Gather", [TABLE, "i"])], inputs={"i": np.array([[2, 0, 2]], np.int32)}, constants={TABLE: normal(4, 8)},
                   kinds=["GATHER"]),
    "one row for another": Case(
        nodes=[node("Equal", "ik", "e"), node("Where", ["e", "n", "i"], "w"), node("Gather", [TABLE, "w"])],
        inputs={"i": np.array([[2, 0, 2]], np.int32)}, kinds=["EQUAL", "SELECT_V2", "GATHER"],
        constants={TABLE: normal(4, 8), "k": np.array(2, np.int32), "n": np.array(3, np.int32)}),
    "where a number is": Case(
        nodes=[node("Equal", "ik", "e"), node("Cast", "e", "n", to=TensorProto.INT32), node("Cast", "n", to=TensorProto.FLOAT)],
        inputs={"i": np.array([[2, 0, 2]], np.int32)}, constants={"k": np.array(2, np.int32)},
        kinds=["EQUAL", "CAST", "CAST", "QUANTIZE"]),
    "resize": Case(nodes=[node("Resize", ["x", "", "k"], mode="nearest", nearest_mode="floor",
                               coordinate_transformation_mode="asymmetric")],
                   inputs={"x": XC}, constants={"k": np.array([1, 1, 2, 3], np.float32)},
                   kinds=["TRANSPOSE", "CONCATENATION", "RESHAPE", "CONCATENATION", "RESHAPE", "TRANSPOSE"]),
    "pad": Case(nodes=[node("Pad", "xk")], inputs={"x": XC}, constants={"k": ints(0, 0, 0, 0, 0, 0, 1, 1)}, kinds=["PAD"]),
    "product": Case(nodes=[node("MatMul", "xz")], inputs={"x": X, "z": normal(1, 8, 5)}, kinds=["BATCH_MATMUL"]),
    "product with a slot as it lies": Case(
        nodes=[node("Transpose", "z", "t", perm=[1, 0]), node("MatMul", "xt")], inputs={"x": X, "z": normal(3, 8)}, kinds=["BATCH_MATMUL"]),
    "linear": Case(nodes=[node("Gemm", ["x", W8, "b"], transB=1)], inputs={"x": X[0]}, constants={W8: normal(5, 8), "b": normal(5)},
                   kinds=["FULLY_CONNECTED"]),
    "linear of 16 bits": Case(nodes=[node("Gemm", ["x", W16], transB=1)], inputs={"x": X[0]}, constants={W16: normal(5, 8)},
                              kinds=["FULLY_CONNECTED", "FULLY_CONNECTED", "ADD"]),
    "convolution": Case(nodes=[node("Conv", ["x", W8, "b"], pads=[1, 1, 1, 1])], inputs={"x": XC}, constants={W8: W, "b": normal(5)},
                        kinds=["TRANSPOSE", "CONV_2D", "TRANSPOSE"]),
    "convolution in steps of two": Case(nodes=[node("Conv", ["x", W8], pads=[1, 1, 1, 1], strides=[2, 2])], inputs={"x": XC},
                                        constants={W8: W}, kinds=["TRANSPOSE", "PAD", "CONV_2D", "TRANSPOSE"]),
    "convolution of 16 bits": Case(nodes=[node("Conv", ["x", W16], pads=[1, 1, 1, 1])], inputs={"x": XC}, constants={W16: W},
                                   kinds=["TRANSPOSE", "CONV_2D", "CONV_2D", "ADD", "TRANSPOSE"]),
    "convolution by a slot": Case(nodes=[node("Conv", "xz", pads=[1, 1, 1, 1])], inputs={"x": XC, "z": W},
                                  kinds=["TRANSPOSE", "PAD", *["SLICE"] * 9, "CONCATENATION", "TRANSPOSE", "RESHAPE", "RESHAPE",
                                         "BATCH_MATMUL", "RESHAPE", "TRANSPOSE"]),
    "convolution by a slot in steps": Case(nodes=[node("Conv", "xz", pads=[1, 1, 1, 1], strides=[2, 2])], inputs={"x": XC, "z": W}),
    "one tap by a slot": Case(nodes=[node("Conv", "xz")], inputs={"x": XC, "z": normal(5, 4, 1, 1)}),
}  # fmt: skip


def placed(case: Case) -> tuple[IntegerGraph, dict[str, Array]]:
    """The case with integers on every edge, and its inputs as those."""
    profile = case.profile()
    call = ComponentCall(source="base", inputs=dict(case.inputs))
    graph = place_integers(lower_layers(case.model(), profile, TARGET, unobserved), profile, [call], TARGET, unobserved)
    return graph, integer_feeds(graph, [call], profile)["base"]


def on_ort(model: ir.Model, feed: Mapping[str, Array], folder: Path) -> Array:
    ir.save(model, folder / "placed.onnx")
    session = ort.InferenceSession(str(folder / "placed.onnx"), session_options("w8a16", 1), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feed))[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_integers_are_those_of_onnx_runtime(case: Case, tmp_path: Path) -> None:
    graph, feed = placed(case)
    content = serialize(lower(graph.model))
    output = TfliteRunner(content, "case", delegates=False).run(feed)
    expected = on_ort(graph.model.clone(), feed, tmp_path)
    encoding = graph.ports.outputs["y"].encoding
    assert encoding is not None
    assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    if any(each.op_type in TABLES for each in case.nodes):
        assert array_sqnr_db(encoding.dequantize(expected), encoding.dequantize(output)) > 60
    else:
        steps = 2 if "ADD" in case.kinds and len(case.kinds) > 2 else 1  # two halves, rounded each
        assert np.abs(output.astype(np.int32) - expected).max() <= steps
        assert np.abs(expected).max() > 1000
    kinds = [kind for kind, _, _ in read_operators(content)]
    assert not case.kinds or kinds == list(case.kinds)
    audited = audit(content, graph.model.graph, case.profile())
    assert audited.profile["weights"] == len(case.profile())
    assert audited.widened == ()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_floats_are_those_of_onnx_runtime(case: Case, tmp_path: Path) -> None:
    model = case.model()
    output = TfliteRunner(serialize(lower(model)), "case", delegates=True).run(case.inputs)
    np.testing.assert_allclose(output, on_ort(model.clone(), case.inputs, tmp_path), atol=2e-5)


def test_every_rule_is_tried_or_is_a_reshape() -> None:
    tried = {each.op_type for case in CASES.values() for each in case.nodes}
    assert set(RULES) - tried == {"Flatten", "Identity", "Split", "Squeeze", "Unsqueeze"}


def test_parts_of_a_split_are_slices(tmp_path: Path) -> None:
    split = helper.make_node("Split", ["x", "k"], ["a", "b"], axis=2, name="split")
    case = Case(nodes=[split, node("Concat", "ba", axis=2)], inputs={"x": X}, constants={"k": ints(3, 5)})
    graph, feed = placed(case)
    content = serialize(lower(graph.model))
    assert [kind for kind, _, _ in read_operators(content)] == ["SLICE", "SLICE", "CONCATENATION"]
    output = TfliteRunner(content, "case", delegates=False).run(feed)
    assert (output == np.concatenate([feed["x"][..., 3:], feed["x"][..., :3]], axis=2)).all()


def test_an_inverse_root_is_near_at_every_step_of_its_input() -> None:
    """Norms of two adapters may differ by hundreds in one range: by a root off by half, what they scale leaves the true range."""
    counts = np.unique(np.geomspace(1, 32767, 500).astype(np.int16))
    root = node("Pow", "xk")
    case = Case(nodes=[root], inputs={"x": counts.astype(np.float32)}, constants={"k": np.array(-0.5, np.float32)})
    graph, _ = placed(case)
    source, result = graph.edges["x"], graph.ports.outputs["y"]
    output = result.decode(TfliteRunner(serialize(lower(graph.model)), "case", delegates=False).run({"x": counts}))
    expected = source.dequantize(counts) ** -0.5
    assert np.abs(output / expected - 1).max() < 0.03
    assert np.abs(output / expected - 1)[counts > 1000].max() < 0.01


@pytest.mark.parametrize("op", ["LayerNormalization", "GroupNormalization"])
def test_norms_of_variances_that_differ_a_hundred_thousand_times(op: str) -> None:
    """LiteRT's own inverse root alone is off by half at the small end."""
    size = np.geomspace(0.02, 6.0, 8).astype(np.float32)
    if op == "LayerNormalization":
        x, attributes = normal(1, 8, 64) * size[:, None], {"axis": -1}
    else:
        x, attributes = normal(1, 16, 6, 6) * np.repeat(size, 2)[:, None, None], {"num_groups": 8}
    affine = np.ones(x.shape[-1] if op == "LayerNormalization" else 16, np.float32)
    case = Case(nodes=[node(op, "xgb", **attributes)], inputs={"x": x}, constants={"g": affine, "b": 0 * affine})
    call = ComponentCall(source="base", inputs=dict(case.inputs))
    graph = place_integers(run_passes(case.model(), ["write_norms"]), {}, [call], TARGET, unobserved)
    output = TfliteRunner(serialize(lower(graph.model)), "case", delegates=False).run(integer_feeds(graph, [call], {})["base"])
    rows = x.reshape(8, -1).astype(np.float64)
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    found = graph.ports.outputs["y"].decode(output).reshape(8, -1)
    each = [array_sqnr_db(true, row) for true, row in zip(expected, found, strict=True)]
    assert min(each) > 30  # the smallest row lies on some hundred steps of x itself
    assert max(each) > 55


def test_another_operator_is_refused_by_name() -> None:
    case = Case(nodes=[node("Erf", "x")], inputs={"x": X})
    with pytest.raises(UnsupportedError, match=r"Erf/y.*found Erf"):
        lower(case.model())


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_layer_of_two_element_types_is_refused(op: str) -> None:
    """LiteRT's kernels accept 8 bits in and 16 bits out, and give 0 dB."""
    operands = {"Gemm": [W8], "MatMul": ["z"]}[op]
    case = Case(nodes=[node(op, ["x", *operands])], inputs={"x": X[0], "z": X[0].T.copy()}, constants={W8: normal(8, 5)})
    graph, _ = placed(case)
    for value in graph.model.graph.inputs:
        if value.name == "x":
            value.dtype = ir.DataType.INT8
    for node_of in graph.model.graph:
        if node_of.op_type == "DequantizeLinear" and node_of.inputs[0].name == "x":
            zero = ir.val("byte", const_value=ir.tensor(np.int8(0), name="byte"))
            graph.model.graph.register_initializer(zero)
            node_of.replace_input_with(2, zero)
    with pytest.raises(UnsupportedError, match="one element type in and out, found int8"):
        lower(graph.model)
