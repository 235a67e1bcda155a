#!/usr/bin/env bash
# ai-edge-litert 2.3.0: no other Python thread runs while a `CompiledModel` does; the older `Interpreter` lets them.
#
# `CompiledModel` is the package's newer way to run a file, and the only one that dispatches to NPUs. Its `run_by_index` and `run_by_name` keep
# Python's global lock from beginning to end, `Interpreter.invoke` lets go of it. Both run the same kernels for the same time. In a program
# with threads, a server for instance, everything else stands still for as long as one graph runs: no answer, no time-out, no cancel.
#
# Seen, turns that a second thread gets while one call runs (it sleeps for a millisecond between turns), the least and most of ten calls
# of about 0.1 to 0.2 seconds, eight FULLY_CONNECTED of 1,024 x 1,024 over 512 rows in float32:
#   Interpreter.invoke           75 to 86
#   CompiledModel.run_by_index    1 to 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ai-edge-litert==2.3.0 "backports-strenum<1.3" numpy==2.4.6
cat > "$work/try.py" <<'PY'
import importlib.metadata
import sys
import threading
import time
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter

CHANNELS, ROWS, LAYERS, CALLS = 1024, 512, 8, 10


def tensor(name, shape, buffer=0):
    entry = schema.TensorT()
    entry.name, entry.shape, entry.type, entry.buffer = name, shape, schema.TensorType.FLOAT32, buffer
    return entry


def chain():
    """A model of some products with one weight, one after the other."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    weight = schema.BufferT()
    weight.data = (np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS)) / 32).astype(np.float32).view(np.uint8).ravel()
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [tensor("w", [CHANNELS, CHANNELS], 1), tensor("x", [ROWS, CHANNELS])], []
    for layer in range(LAYERS):
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = 0, [1 + layer, 0, -1], [2 + layer]
        node.builtinOptionsType, node.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
        graph.operators.append(node)
        graph.tensors.append(tensor(f"y{layer}", [ROWS, CHANNELS]))
    graph.inputs, graph.outputs = [1], [1 + LAYERS]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), weight]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def turns_of_another_thread(call):
    """Of a thread beside, for each call."""
    turns, ended = [0], threading.Event()

    def beside():
        while not ended.is_set():
            turns[0] += 1
            time.sleep(0.001)

    call()
    thread = threading.Thread(target=beside)
    thread.start()
    counts = []
    for _ in range(CALLS):
        before = turns[0]
        call()
        counts.append(turns[0] - before)
    ended.set()
    thread.join()
    return counts


file = Path(sys.argv[1]) / "chain.tflite"
file.write_bytes(chain())
x = np.ones((ROWS, CHANNELS), np.float32)
interpreter = Interpreter(model_path=str(file), num_threads=1)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
compiled = CompiledModel.from_file(str(file))
inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
inputs[0].write(x)

print(f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}")
free = turns_of_another_thread(interpreter.invoke)
held = turns_of_another_thread(lambda: compiled.run_by_index(0, inputs, outputs))
print(f"Interpreter.invoke           {min(free)} to {max(free)} turns")
print(f"CompiledModel.run_by_index   {min(held)} to {max(held)} turns")
same = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).ravel()
assert np.allclose(outputs[0].read(same.size, np.float32), same, rtol=1e-3, atol=1e-5), "the two give other numbers"
assert max(held) <= 3 and sorted(free)[CALLS // 2] >= 10, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/said" || { cat "$work/said"; exit 1; }
echo "as described"
