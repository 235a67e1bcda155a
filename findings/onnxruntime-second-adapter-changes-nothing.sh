#!/usr/bin/env bash
# onnxruntime 1.31.1: of two LoRA adapters active in one run the first one alone counts, and an adapter overrides an input that the call gives.
#
# `RunOptions.add_active_adapter` may be called several times and takes every adapter without a word. Where two hold a parameter of the same
# name, as two LoRAs of one model do, nothing is added up: the one that was added first is used whole, the later ones are left out, with no
# error and no warning. A weighted sum of adapters has to be one file. An input that the call itself gives is left out in the same way when an
# active adapter holds that name. (The C API's header says that several adapters may be active; what happens to equal names it does not say.)
#
# Seen, output of x @ I + x @ a @ b for ones, adapter A adds 4, adapter B adds 40, warnings and errors of the runtime meanwhile:
#   no adapter                       1
#   A                                5
#   B                               41
#   A, then B                        5   (a sum would be 45)
#   B, then A                       41
#   A, and a = 0 as an input         5   (the input alone: 1)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

folder, n = Path(sys.argv[1]), 4
zeros = {"a": np.zeros((n, 1), np.float32), "b": np.zeros((1, n), np.float32)}
inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, n]), ("a", [n, 1]), ("b", [1, n]))]
nodes = [
    helper.make_node("MatMul", ["x", "w"], ["whole"]),
    helper.make_node("MatMul", ["x", "a"], ["mid"]),
    helper.make_node("MatMul", ["mid", "b"], ["update"]),
    helper.make_node("Add", ["whole", "update"], ["y"]),
]
constants = [numpy_helper.from_array(np.eye(n, dtype=np.float32), "w"), *(numpy_helper.from_array(value, name) for name, value in zeros.items())]
graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, n])], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def adapter(name, scale):
    writer = ort.AdapterFormat()
    writer.set_adapter_version(1)
    writer.set_model_version(1)
    values = {"a": np.full((n, 1), scale, np.float32), "b": np.ones((1, n), np.float32)}
    writer.set_parameters({key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in values.items()})
    writer.export_adapter(str(folder / name))
    loaded = ort.LoraAdapter()
    loaded.Load(str(folder / name))
    return loaded


def output(active, **given):
    options = ort.RunOptions()
    for each in active:
        options.add_active_adapter(each)
    return float(session.run(None, {"x": np.ones((1, n), np.float32), **given}, options)[0][0, 0])


print(f"onnxruntime {ort.__version__}")
session = ort.InferenceSession(model.SerializeToString())
a, b = adapter("a.onnx_adapter", 1), adapter("b.onnx_adapter", 10)
rows = {
    "no adapter": ([], {}, 1),
    "A": ([a], {}, 5),
    "B": ([b], {}, 41),
    "A, then B": ([a, b], {}, 5),
    "B, then A": ([b, a], {}, 41),
    "A, and a = 0 as an input": ([a], {"a": zeros["a"]}, 5),
}
for name, (active, given, expected) in rows.items():
    value = output(active, **given)
    print(f"{name:30s} {value:g}")
    assert value == expected, "the behaviour has changed"
assert output([], a=zeros["a"]) == 1
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/said"
# Of the runtime's own lines only the ones about initializers that are inputs, written when the session opens.
if grep -v "Initializer [ab] appears in graph inputs" "$work/said" | grep -q .; then cat "$work/said"; echo "the runtime says more than before"; exit 1; fi
echo "as described"
