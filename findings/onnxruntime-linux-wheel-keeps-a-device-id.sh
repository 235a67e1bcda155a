#!/usr/bin/env bash
# onnxruntime 1.31.1, official wheel for Linux x86-64: opening one session leaves a lasting device id and a database in the home directory.
#
# The first InferenceSession of a process writes two files below ~/.cache/Microsoft/DeveloperTools/.onnxruntime: `deviceid`, which a
# second process finds and keeps, and `onnxruntime.db`, a queue of events. Nothing is printed and no option of the session controls it. The
# environment variable ORT_DISABLE_TELEMETRY=1, set before the import, prevents both files; 0 leaves them on.
#
# Seen: default: deviceid, onnxruntime.db; the same id after a second process. ORT_DISABLE_TELEMETRY=1: no file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat > "$work/open.py" <<'PY'
import sys

from onnx import TensorProto, helper

info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
import onnxruntime

onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
print("onnxruntime", onnxruntime.__version__)
PY
alone() { if unshare -n true 2>/dev/null; then unshare -n "$@"; else "$@"; fi; }  # nothing is sent where the system allows that
opened() { mkdir -p "$work/$1"; alone env -u XDG_CACHE_HOME HOME="$work/$1" "${@:2}" "$work/venv/bin/python" "$work/open.py"; }
left() { (cd "$work/$1" && find . -type f | sort); }
id_of() { sha256sum < "$work/default/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid"; }
opened default env -u ORT_DISABLE_TELEMETRY
echo "default:"; left default
first=$(id_of)
opened default env -u ORT_DISABLE_TELEMETRY
test "$(id_of)" = "$first" && echo "a second process keeps the id"
opened off env ORT_DISABLE_TELEMETRY=1
echo "ORT_DISABLE_TELEMETRY=1: $(left off | wc -l) files"
test "$(left default | grep -cE '/(deviceid|onnxruntime.db)$')" = 2
test -z "$(left off)"
echo "as described"
