#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0, HTP emulator on x86-64: a 16-bit signed operand that is a graph input is clipped at +32639, not at +32767.
#
# A matmul whose second operand is an int16 graph input behind DequantizeLinear (zero point 0) gives the answer of min(q, 32639) for every
# stored q from 32640 to 32767. The negative end is whole: -32767 counts as -32767. ONNX Runtime's CPU provider counts both ends whole, and
# neither the compiler nor the session says anything. 32639 is 0x7F7F: two signed bytes, each at its largest.
# Who scales symmetric 16-bit weights by max / 32767 loses 0.39 % of the largest positive ones alone; max / 32639 loses nothing.
#
# Seen (SM8750, htp_arch 79; 32 ones times 32 equal weights, weight = q / 32767):
#   q  32000   HTP  31.2513   CPU  31.2513
#   q  32639   HTP  31.8750   CPU  31.8750
#   q  32700   HTP  31.8750   CPU  31.9350
#   q  32767   HTP  31.8750   CPU  32.0000
#   q -32639   HTP -31.8750   CPU -31.8750
#   q -32767   HTP -32.0000   CPU -32.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnxruntime-qnn==2.7.0 onnx==1.23.2 numpy==2.4.6
cat > "$work/try.py" <<'PY'
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

WIDTH, STEP = 32, 1 / 800
file = sys.argv[1] + "/operand.onnx"
constants = {
    "x_scale": np.float32(1 / 25600), "x_zero": np.uint16(32768), "w_scale": np.float32(1 / 32767), "w_zero": np.int16(0),
    "y_scale": np.float32(STEP), "y_zero": np.uint16(32768),
}
nodes = [
    helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["xf"]),
    helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
    helper.make_node("MatMul", ["xf", "wf"], ["yf"]),
    helper.make_node("QuantizeLinear", ["yf", "y_scale", "y_zero"], ["y"]),
]
inputs = [("x", TensorProto.UINT16, [1, WIDTH]), ("w", TensorProto.INT16, [WIDTH, 8])]
graph = helper.make_graph(
    nodes, "operand", [helper.make_tensor_value_info(*each) for each in inputs],
    [helper.make_tensor_value_info("y", TensorProto.UINT16, [1, 8])],
    [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)

ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
options = ort.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
options.log_severity_level = 4
device = next(each for each in ort.get_ep_devices() if each.ep_name == "QNNExecutionProvider")
options.add_provider_for_devices([device], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": "69", "htp_arch": "79"})
htp = ort.InferenceSession(file, options)
cpu = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
x = np.full((1, WIDTH), 32768 + 25600, np.uint16)  # ones


def answer(session, q):
    integers = session.run(None, {"x": x, "w": np.full((WIDTH, 8), q, np.int16)})[0]
    return (float(integers[0, 0]) - 32768) * STEP


for q in (32000, 32639, 32700, 32767, -32639, -32767):
    ours, truth = answer(htp, q), answer(cpu, q)
    print(f"q {q:6d}   HTP {ours:8.4f}   CPU {truth:8.4f}")
    assert abs(truth - WIDTH * q / 32767) <= STEP, "the CPU provider has changed"
    assert abs(ours - WIDTH * min(q, 32639) / 32767) <= STEP, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" | grep "^q"
echo "onnxruntime-qnn 2.7.0: as described"
