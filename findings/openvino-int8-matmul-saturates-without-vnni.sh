#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU plugin: a quantized matmul is wrong, in silence, on x86 processors without VNNI.
#
# A graph of QuantizeLinear -> DequantizeLinear -> MatMul(int8 weight behind DequantizeLinear) becomes an integer kernel. Where the
# processor has AVX2 but no VNNI, that kernel adds neighbouring u8 x s8 products in 16 bits, and a pair of 255 x 127 no longer fits: the sum
# is cut at 32767. OPTIMIZATION_CAPABILITIES lists INT8 all the same, nothing warns, and EXECUTION_MODE_HINT=ACCURACY does not help.
# The property LP_TRANSFORMS_MODE=False (not among SUPPORTED_PROPERTIES) keeps the pairs in float, and the answer is right.
#
# Seen (AMD EPYC with AVX2, no VNNI; ones (1, 64) times ones (64, 1), both quantized):
#   default                     32.3775   expected 64
#   LP_TRANSFORMS_MODE=False    64.0000
# On processors with VNNI both are expected to be 64; that half was not run here.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6 openvino-telemetry==2025.2.0
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None  # no usage report
import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

constants = {
    "s": np.float32(1 / 255), "z": np.uint8(0),
    "w": np.full((64, 1), 127, np.int8), "sw": np.float32(1 / 127), "zw": np.int8(0),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"]),
    helper.make_node("MatMul", ["d", "v"], ["y"]),
]
graph = helper.make_graph(
    nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
)
file = Path(sys.argv[1]) / "g.onnx"
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
core = ov.Core()
x = np.ones((1, 64), np.float32)


def answer(**options):
    compiled = core.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", **options})
    return float(compiled(x)[0][0, 0])


plain, kept = answer(), answer(LP_TRANSFORMS_MODE=False)
vnni = "vnni" in Path("/proc/cpuinfo").read_text()
listed = "INT8" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(f"openvino {ov.__version__.split('-')[0]}, VNNI {vnni}, INT8 listed {listed}")
print(f"default {plain:.4f}, LP_TRANSFORMS_MODE=False {kept:.4f}, expected 64")
assert listed and abs(kept - 64) < 1e-3
assert abs(plain - 64) < 1e-3 if vnni else abs(plain - 32.3775) < 1e-2, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
