"""What an engine makes of one large product of bytes: the int8 peak that a step is measured against."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir

from quad.compile.passes import run_passes
from quad.runtime.engines.engine import open_engine

ROWS, DEPTH, COLUMNS = 4096, 1280, 1280
_WARM_UP, _CALLS = 3, 10


def int8_peak(engine: str, threads: int) -> float:
    """Operations a second, the best of several calls.

    Args:
        engine: `ort` or `openvino`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        model = _product()
        ir.save(run_passes(model, ["integer_matmul"]) if engine == "ort" else model, file)
        session = open_engine(engine, (), "w8a8").load(file, threads)
        feed = {"x": np.random.default_rng(0).standard_normal((ROWS, DEPTH)).astype(np.float32)}
        times = []
        for _ in range(_WARM_UP + _CALLS):
            start = perf_counter()
            session.run(feed)
            times.append(perf_counter() - start)
    return 2.0 * ROWS * DEPTH * COLUMNS / min(times)


def _product() -> ir.Model:
    """DQ(Q(x)) DQ(W) in float, its rows added up, so that little of it is written."""
    x = ir.Value(name="x", shape=ir.Shape((ROWS, DEPTH)), type=ir.TensorType(ir.DataType.FLOAT))
    integers = np.random.default_rng(1).integers(-127, 128, (DEPTH, COLUMNS)).astype(np.int8)
    constants = {"s": np.float32(0.03), "z": np.uint8(128), "w": integers, "ws": np.float32(0.01), "wz": np.int8(0)}
    values = {}
    for name, array in constants.items():
        tensor = ir.tensor(np.asarray(array), name=name)
        values[name] = ir.Value(name=name, const_value=tensor, shape=ir.Shape(np.shape(array)), type=ir.TensorType(tensor.dtype))
    s, z, w, ws, wz = values.values()
    quantize = ir.node("QuantizeLinear", [x, s, z])
    left, right = ir.node("DequantizeLinear", [quantize.outputs[0], s, z]), ir.node("DequantizeLinear", [w, ws, wz])
    product = ir.node("MatMul", [left.outputs[0], right.outputs[0]])
    for node, shape, dtype in ((quantize, (ROWS, DEPTH), ir.DataType.UINT8), (left, (ROWS, DEPTH), ir.DataType.FLOAT),
                               (right, (DEPTH, COLUMNS), ir.DataType.FLOAT), (product, (ROWS, COLUMNS), ir.DataType.FLOAT)):  # fmt: skip
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(dtype)
    graph = ir.Graph([x], [product.outputs[0]], nodes=[quantize, left, right, product], initializers=[*values.values()],
                     opset_imports={"": 21}, name="product")  # fmt: skip
    return ir.Model(graph, ir_version=10)
