#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0, HTP emulator on x86-64, v68 and v69 (SM8350, SM8450): which side of a MatMul may be 16 bits, and which then counts.
#
# With one operand unsigned 16 bits (an activation) and the other a graph input:
# - signed 16 bits as the second operand is refused; as the FIRST operand it is taken and exact. v73 and later take both.
# - unsigned 16 bits as the second operand is taken by all of them, without a word, and has the accuracy of 8 bits.
# So `x @ w` with a computed 16-bit w is refused or poor, and `transpose(transpose(w) @ transpose(x))` is right.
#
# Seen, dB against ONNX Runtime's CPU provider:
#   v69  int16 second   refused
#   v69  int16 first    68 dB
#   v69  uint16 second  41 dB
#   v73  int16 second   80 dB
#   v73  int16 first    69 dB
#   v73  uint16 second  41 dB
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

KINDS = {"int16": (TensorProto.INT16, np.int16, 0), "uint16": (TensorProto.UINT16, np.uint16, 32768)}
SHAPES = ([32, 64], [64, 32])
STEP, OUT_STEP = 1 / 8192, 1 / 512
generator = np.random.default_rng(0)


def model(file, kinds):
    nodes, constants, inputs = [], [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for name, kind, shape in zip("ab", kinds, SHAPES, strict=True):
        proto, dtype, zero = KINDS[kind]
        inputs.append(helper.make_tensor_value_info(name, proto, shape))
        nodes.append(helper.make_node("DequantizeLinear", [name, constant(f"{name}s", np.float32(STEP)), constant(f"{name}z", dtype(zero))], [f"{name}f"]))
    nodes.append(helper.make_node("MatMul", ["af", "bf"], ["yf"]))
    nodes.append(helper.make_node("QuantizeLinear", ["yf", constant("ys", np.float32(OUT_STEP)), constant("yz", np.uint16(32768))], ["y"]))
    output = helper.make_tensor_value_info("y", TensorProto.UINT16, [32, 32])
    graph = helper.make_graph(nodes, "product", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)


def agreement(file, kinds, soc, arch):
    model(file, kinds)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 4
    device = next(each for each in ort.get_ep_devices() if each.ep_name == "QNNExecutionProvider")
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": soc, "htp_arch": arch}
    options.add_provider_for_devices([device], backend)
    try:
        htp = ort.InferenceSession(file, options)
    except Exception:
        return None
    cpu = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {}
    for name, kind, shape in zip("ab", kinds, SHAPES, strict=True):
        _, dtype, zero = KINDS[kind]
        feed[name] = (generator.standard_normal(shape).clip(-3.9, 3.9) / STEP + zero).astype(dtype)
    true, ours = (session.run(None, feed)[0].astype(np.float64) - 32768 for session in (cpu, htp))
    return 10 * np.log10(np.sum(true**2) / max(np.sum((true - ours) ** 2), 1e-9))


ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
CASES = {"int16 second": ("uint16", "int16"), "int16 first": ("int16", "uint16"), "uint16 second": ("uint16", "uint16")}
for version, soc in (("69", "36"), ("73", "43")):
    for label, kinds in CASES.items():
        db = agreement(sys.argv[1] + "/product.onnx", kinds, soc, version)
        print(f"v{version}  {label:14s} {'refused' if db is None else f'{db:.0f} dB'}")
        if label == "int16 second":
            assert (db is None) == (version == "69"), "the behaviour has changed"
        else:
            assert db is not None and (db < 45) == (label == "uint16 second"), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" | grep "^v"
echo "onnxruntime-qnn 2.7.0: as described"
