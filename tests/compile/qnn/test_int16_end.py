"""Signed 16-bit operands end at +32639 on the HTP: no larger integer is used, and the largest weight counts as much as on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quad.compile.placement.every_edge import symmetric16
from quad.compile.placement.integer_graph import IntegerGraph
from quad.compile.qnn.compile_graph import compiler_options
from quad.compile.qnn.htp import compile_htp
from quad.core.encoding import Encoding, encode_range
from quad.core.ports import Port, Ports
from quad.core.tensor_names import Role, role_of
from tests.compile.qnn.placed_htp import SOC, TARGET, Placed, fed

END = TARGET.int16_largest
CHANNELS = 64


def test_no_signed_16_bit_integer_is_beyond_the_end(placed: Placed) -> None:
    wide = {
        name: encoding
        for name, encoding in placed.profile.component("unet").items()
        if encoding.bits == 16 and encoding.signed and role_of(name) in (Role.WEIGHT, Role.LORA_A, Role.LORA_B)
    }
    assert wide
    assert {encoding.qmax for encoding in wide.values()} == {END}
    integers = [array for feed in fed(placed).values() for array in feed.values() if array.dtype == np.int16] + [
        value.const_value.numpy() for value in placed.graph.model.graph.initializers.values() if value.dtype == ir.DataType.INT16
    ]
    assert max((int(np.abs(array.astype(int)).max(initial=0)) for array in integers), default=0) <= END


def test_the_same_range_on_fewer_integers() -> None:
    whole = encode_range(-2.0, 1.0, bits=16, signed=True, symmetric=True)
    fewer = whole.within(END)
    assert (fewer.qmin, fewer.qmax) == (-END, END)
    assert fewer.scale[0] * fewer.qmax == pytest.approx(whole.scale[0] * whole.qmax, rel=1e-6)
    assert fewer.quantize(np.array([2.0, -2.0, 9.0, 0.0], np.float32)).tolist() == [END, -END, END, 0]
    bytes_ = encode_range(-2.0, 1.0, bits=8, signed=True, symmetric=True)
    assert bytes_.within(END) == bytes_


def _dequantized(name: str, encoding: Encoding) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    constants = [
        numpy_helper.from_array(np.float32(encoding.scale[0]), f"{name}/s"),
        numpy_helper.from_array(np.asarray(encoding.zero_point[0], encoding.dtype), f"{name}/z"),
    ]
    return helper.make_node("DequantizeLinear", [name, f"{name}/s", f"{name}/z"], [f"{name}/f"]), constants


def _product(operand: Encoding, converted: Encoding | None) -> onnx.ModelProto:
    """`x @ w` with `w` as a graph input; with `converted`, `w` is converted to it behind its DQ, as K and V are."""
    x = encode_range(-3.2768, 3.2767, bits=16, signed=False, symmetric=False)
    out = encode_range(-80.0, 80.0, bits=16, signed=False, symmetric=False)
    nodes, constants = map(list, zip(*(_dequantized("x", x), _dequantized("w", operand)), strict=True))
    last = "w/f"
    if converted is not None:
        node, more = _dequantized("v", converted)
        nodes += [helper.make_node("QuantizeLinear", [last, "v/s", "v/z"], ["v"]), node]
        constants.append(more)
        last = "v/f"
    nodes.append(helper.make_node("MatMul", ["x/f", last], ["y/f"]))
    _, more = _dequantized("y", out)
    nodes.append(helper.make_node("QuantizeLinear", ["y/f", "y/s", "y/z"], ["y"]))
    value = helper.make_tensor_value_info
    kind = TensorProto.INT16 if operand.signed else TensorProto.UINT16
    graph = helper.make_graph(
        nodes, "end",
        [value("x", TensorProto.UINT16, [1, CHANNELS]), value("w", kind, [CHANNELS, 2])],
        [value("y", TensorProto.UINT16, [1, 2])],
        [tensor for tensors in (*constants, more) for tensor in tensors],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("converted", [False, True], ids=["slot", "converted"])
def test_the_largest_weight_counts_as_much_as_on_a_cpu(converted: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from quad.runtime.engines.qnn import htp_session

    weights = np.repeat(np.array([[1.0, -1.0]], np.float32), CHANNELS, axis=0)
    wide = encode_range(-1.0, 1.0, bits=16, signed=not converted, symmetric=not converted)
    operand = wide if converted else wide.within(END)
    onnx.save(_product(operand, symmetric16(wide, END) if converted else None), tmp_path / "end.onnx")
    feed = {"x": np.full((1, CHANNELS), 42768, np.uint16), "w": operand.quantize(weights)}
    on_cpu = ort.InferenceSession(tmp_path / "end.onnx", providers=["CPUExecutionProvider"]).run(None, feed)[0].astype(int)
    on_chip = htp_session(tmp_path / "end.onnx", options=compiler_options(SOC)).run(None, feed)[0].astype(int)
    # 0.39 % of the product, which the end of the type would lose, are over 100 steps.
    assert np.abs(on_cpu - on_chip).max() <= 2


def test_a_graph_is_the_same_however_often_a_process_compiled(tmp_path: Path) -> None:
    """The compiler's binary differs each time, in numbers of its objects; packs must fit all of them, and no other graph's."""
    pytest.importorskip("onnxruntime_qnn")
    wide = encode_range(-1.0, 1.0, bits=16, signed=True, symmetric=True)
    model = ir.serde.deserialize_model(_product(wide.within(END), None))
    port = Ports({"x": Port("uint16", wide)}, {"y": Port("uint16", wide)})

    def identity(folder: str, model: ir.Model = model) -> str:
        return compile_htp(IntegerGraph(model=model, edges={}, constants={}, ports=port), tmp_path / folder, SOC).identity

    first = identity("first")
    assert identity("second") == first
    other = ir.serde.deserialize_model(_product(wide, None))
    assert identity("other", other) != first
