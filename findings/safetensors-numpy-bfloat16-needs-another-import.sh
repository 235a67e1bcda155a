#!/usr/bin/env bash
# safetensors 0.8.0, NumPy framework: whether a bfloat16 tensor can be read depends on what else was imported before.
#
# `safe_open(path, framework="np")` asks NumPy for a type called "bfloat16". NumPy has none until some package registers it, as ml_dtypes
# does on import (onnx and jax bring it), so the same call on the same file fails or works by the order of imports in other modules.
# Float8 types fail in either case, with an AttributeError of NumPy's module instead of an error of the library, and
# `safetensors.numpy.load` refuses with a bare KeyError what `load_file` reads. A program that reads LoRA files without torch has to widen
# these bits itself.
#
# Seen:
#   BF16      alone: TypeError: data type 'bfloat16' not understood       after import ml_dtypes: bfloat16; load(): KeyError: 'BF16'
#   F8_E4M3   alone: AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'      after import ml_dtypes: the same
#   F8_E5M2   alone: AttributeError: module 'numpy' has no attribute 'float8_e5m2'        after import ml_dtypes: the same
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
cat > "$work/try.py" <<'PY'
import json
import struct
import sys
from pathlib import Path

import safetensors
from safetensors import safe_open
from safetensors.numpy import load

path = Path(sys.argv[1]) / "x.safetensors"


def write(dtype, item_bytes):
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * item_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * item_bytes))


def attempt(read):
    try:
        return str(read().dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def opened():
    with safe_open(path, framework="np") as file:
        return file.get_tensor("a")


def all_types():
    answers = {}
    for dtype, item_bytes in (("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1)):
        write(dtype, item_bytes)
        answers[dtype] = attempt(opened), attempt(lambda: load(path.read_bytes())["a"])
    return answers


print(f"safetensors {safetensors.__version__}")
alone = all_types()
import ml_dtypes  # noqa: E402, F401

after = all_types()
for dtype in alone:
    print(f"{dtype:8} alone: {alone[dtype][0]}; after import ml_dtypes: {after[dtype][0]}; load(): {after[dtype][1]}")
assert alone["BF16"][0].startswith("TypeError") and after["BF16"] == ("bfloat16", "KeyError: 'BF16'"), "the behaviour has changed"
assert all(after[dtype][0].startswith("AttributeError") for dtype in ("F8_E4M3", "F8_E5M2")), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work"
echo "as described"
