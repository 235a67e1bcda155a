#!/usr/bin/env bash
# onnx 1.23.2 with onnxruntime 1.31.1: a graph that onnx saves with external data loads until a Split has 128 parts, and not from there on.
#
# `onnx.save_model(..., save_as_external_data=True)` moves every tensor of 1,024 bytes or more into the data file, whatever reads it; the int64
# sizes of a Split of 128 parts are 1,024 bytes. onnxruntime infers shapes before it reads external data, and refuses a graph whose sizes lie
# there, though `onnx.checker.check_model` and its full check pass it. A threshold of 0, as some exporters take, makes the same of the
# shape of any Reshape. Sizes have to stay in the graph's own file: a larger `size_threshold=` keeps them there.
#
# Seen:
#   Split into 127 parts: checker passes, onnxruntime loads
#   Split into 128 parts: checker passes, onnxruntime refuses: [ShapeInferenceError] Cannot parse data from external tensors
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

folder = Path(sys.argv[1])
print(f"onnx {onnx.__version__}, onnxruntime {ort.__version__}")


def verdict(parts):
    names = [f"part{i}" for i in range(parts)]
    nodes = [helper.make_node("Split", ["x", "sizes"], names, axis=0), helper.make_node("Concat", names[::-1], ["y"], axis=0)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2 * parts]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.full(parts, 2, np.int64), "sizes")])
    file = folder / f"{parts}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(model, file, save_as_external_data=True, location=f"{parts}.data")
    onnx.checker.check_model(str(file), full_check=True)
    try:
        ort.InferenceSession(str(file))
    except Exception as error:
        reason = "Cannot parse data from external tensors"
        return f"refuses: {reason}" if reason in str(error) else str(error)
    return "loads"


seen = {parts: verdict(parts) for parts in (127, 128)}
for parts, answer in seen.items():
    print(f"Split into {parts} parts: checker passes, onnxruntime {answer}")
assert seen == {127: "loads", 128: "refuses: Cannot parse data from external tensors"}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
