#!/usr/bin/env bash
# onnx 1.23.2 with onnxruntime 1.31.1: a graph that onnx saves with external data loads until a Split has 124 parts, and not from there on.
#
# `onnx.save_model(..., save_as_external_data=True)` moves every tensor of its `size_threshold` or more, 1,024 bytes by default, into the data
# file, whatever reads it. onnxruntime infers shapes before it reads external data, and refuses a graph whose Split, Reshape or Pad has its sizes
# there. `onnx.checker.check_model` passes the file (its full check infers shapes too, and refuses what onnx itself wrote). 124 int64 sizes are
# 992 bytes, not 1,024: the threshold is compared with the size of Python's bytes object, which is 33 bytes larger than its content. A larger
# `size_threshold=` keeps the sizes in the graph's own file.
#
# Seen:
#   Split into 123 parts,  984 bytes: in the graph, checker passes, onnxruntime loads
#   Split into 124 parts,  992 bytes: outside, checker passes, onnxruntime refuses: Cannot parse data from external tensors
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
    onnx.checker.check_model(str(file))
    written = onnx.load(file, load_external_data=False).graph.initializer[0]
    place = "outside" if written.data_location == TensorProto.EXTERNAL else "in the graph"
    try:
        ort.InferenceSession(str(file))
    except Exception as error:
        reason = "Cannot parse data from external tensors"
        return f"{place}, checker passes, onnxruntime refuses: {reason if reason in str(error) else error}"
    return f"{place}, checker passes, onnxruntime loads"


seen = {parts: verdict(parts) for parts in (123, 124)}
for parts, answer in seen.items():
    print(f"Split into {parts} parts, {8 * parts:4} bytes: {answer}")
refusal = "outside, checker passes, onnxruntime refuses: Cannot parse data from external tensors"
assert seen == {123: "in the graph, checker passes, onnxruntime loads", 124: refusal}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
