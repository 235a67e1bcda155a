#!/usr/bin/env bash
# onnxruntime 1.31.1, CPU: a graph of 8-bit weights runs every DequantizeLinear of a constant before its first layer, the last layer's first.
#
# Weights are INT8 initializers, each behind DequantizeLinear, each read by one MatMul; activations are float. The session's order of nodes is
# not the file's: all weights are dequantized first, whatever the optimization level, and all of them lie in memory as float32 when the
# first MatMul runs, at every call. So a file that is a quarter as large saves nothing at the peak: it takes the float model's memory and
# its own. Nothing warns, and nothing is folded: each call dequantizes anew.
# `SessionOptions.execution_order = ExecutionOrder.PRIORITY_BASED` runs each next to its MatMul, one float32 weight at a time.
#
# Seen: 24 layers of 1024x1024, 25 MB of weights; memory of the process's own, beyond what it held before, in the first call
#   default: 24 of 24 dequantized before the first MatMul, the last layer first; 104 MB
#   priority based: 1 of 24, in the order of the file; 4 MB
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > "$work/try.py" <<'PY'
import json
import sys
from threading import Event, Thread

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 24, 1024
folder, order, level = sys.argv[1:]


def model():
    """Square layers one behind another, their weights 8-bit."""
    constants = [numpy_helper.from_array(np.float32(0.01), "step"), numpy_helper.from_array(np.int8(0), "zero")]
    nodes, x = [], "x0"
    for layer in range(LAYERS):
        weight = np.random.default_rng(layer).integers(-9, 10, (WIDTH, WIDTH)).astype(np.int8)
        constants.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"w{layer}", "step", "zero"], [f"f{layer}"], name=f"dequantize{layer}"))
        nodes.append(helper.make_node("MatMul", [x, f"f{layer}"], [f"x{layer + 1}"], name=f"matmul{layer}"))
        x = f"x{layer + 1}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x0", x)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def own():
    """Bytes of this process's own memory."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def session(profiled):
    options = onnxruntime.SessionOptions()
    options.execution_order = getattr(onnxruntime.ExecutionOrder, order)
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = profiled, f"{folder}/profile"
    return onnxruntime.InferenceSession(model(), options, providers=["CPUExecutionProvider"])


x = np.ones((1, WIDTH), np.float32)
measured = session(profiled=False)
before, most, end = own(), 0, Event()


def watch():
    global most
    while not end.wait(0.0005):
        most = max(most, own() - before)


watcher = Thread(target=watch)
watcher.start()
measured.run(None, {"x0": x})
most = max(most, own() - before)
end.set()
watcher.join()
profiled = session(profiled=True)
profiled.run(None, {"x0": x})
events = json.load(open(profiled.end_profiling()))
ran = [event["name"].removesuffix("_kernel_time") for event in events if event["name"].endswith("_kernel_time")]
assert sorted(ran) == sorted(f"{kind}{layer}" for kind in ("dequantize", "matmul") for layer in range(LAYERS)), "the behaviour has changed"
first = next(place for place, name in enumerate(ran) if name.startswith("matmul"))
print(f"onnxruntime {onnxruntime.__version__}, {order}, {level}: {first} of {LAYERS} dequantized before the first MatMul, {ran[0]} first; {most / 1e6:.0f} MB")
if order == "DEFAULT":
    assert first == LAYERS and ran[0] == f"dequantize{LAYERS - 1}" and most > 0.8 * 4 * LAYERS * WIDTH**2, "the behaviour has changed"
else:
    assert first == 1 and ran[0] == "dequantize0" and most < 0.3 * 4 * LAYERS * WIDTH**2, "the behaviour has changed"
PY
for level in ORT_DISABLE_ALL ORT_ENABLE_ALL; do
    for order in DEFAULT PRIORITY_BASED; do "$work/venv/bin/python" "$work/try.py" "$work" "$order" "$level"; done
done
