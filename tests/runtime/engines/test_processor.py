"""Facts about the processor, and the law that they serve: 8-bit products are summed whole on every one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.exact_products import with_exact_products
from quad.runtime.engines.processor import products_saturate
from tests.runtime.tiny_unet import save_graph, value


def test_products_saturate_where_nobody_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    known = (("x86_64", "avx2 avx512_vnni", False), ("AMD64", "avx2", True), ("x86_64", None, True), ("aarch64", None, False))
    for machine, flags, expected in known:
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        info.unlink(missing_ok=True)
        if flags is not None:
            info.write_text(f"flags : {flags}\n")
        products_saturate.cache_clear()
        assert products_saturate(info) is expected, (machine, flags)
    products_saturate.cache_clear()


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_no_engine_saturates_a_sum_of_eight_bit_products(engine: str, tmp_path: Path) -> None:
    """The largest products there are: 255 x 127, of which a pair no longer fits 16 bits."""
    step, zero, zero_w = np.float32(1 / 255), np.uint8(0), np.int8(0)
    constants = {"s": step, "z": zero, "w": np.full((64, 16), 127, np.int8), "sw": np.float32(1 / 127), "zw": zero_w}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    file = tmp_path / "unet/model.onnx"
    save_graph(file, "unet", nodes, [value("x", [4, 64])], value("y", [4, 16]), constants)
    output = open_engine(engine, (engine,), "w8a8").load(file, 1).run({"x": np.ones((4, 64), np.float32)})
    np.testing.assert_allclose(output, 64.0, rtol=1e-5)


def test_products_of_computed_bytes_are_exact_where_kernels_saturate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's integer kernel in float: the same numbers, weights beside the file, and the kernel of a constant left to the library."""
    constants = {"s": np.float32(0.02), "z": np.uint8(128), "n": np.int8(0), "w": np.full((8, 16), 3, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("QuantizeLinear", ["y", "s", "n"], ["b"]),
        helper.make_node("MatMulIntegerToFloat", ["a", "b", "s", "s", "z"], ["p"], name="product", domain="com.microsoft"),
        helper.make_node("MatMulIntegerToFloat", ["a", "w", "s", "s", "z"], ["r"], domain="com.microsoft"),
        helper.make_node("Add", ["p", "r"], ["o"]),
    ]
    file = tmp_path / "unet/model.onnx"
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "unet", [value("x", [4, 8]), value("y", [8, 16])], [value("o", [4, 16])], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    file.parent.mkdir()
    onnx.save(model, file, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((4, 8)).astype(np.float32), "y": rng.standard_normal((8, 16)).astype(np.float32)}
    plain = open_engine("ort", (), "w8a8").load(file, 1).run(inputs)
    monkeypatch.setattr("quad.runtime.engines.ort.products_saturate", lambda: True)
    np.testing.assert_allclose(open_engine("ort", (), "w8a8").load(file, 1).run(inputs), plain, rtol=1e-5, atol=1e-6)
    exact = onnx.load_from_string(with_exact_products(file.read_bytes()))
    assert [node.op_type for node in exact.graph.node][2:5] == ["DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert [node.op_type for node in exact.graph.node].count("MatMulIntegerToFloat") == 1


@pytest.mark.parametrize("cut", [1, 9])
def test_a_file_that_is_no_model_is_left_for_the_engine_to_refuse(cut: int) -> None:
    damaged = (b"\x3a\x40" + b"MatMulIntegerToFloat")[:-cut] + b"MatMulIntegerToFloat"
    assert with_exact_products(damaged) == damaged
