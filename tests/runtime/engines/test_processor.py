"""Facts about the processor, and the law that they serve: 8-bit products are summed whole on every one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from quad.runtime.engines.engine import open_engine
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
