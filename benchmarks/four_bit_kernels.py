"""ONNX Runtime's kernel of 4-bit weights, MatMulNBits, beside the forms that graphs for `cpu` have had: time, memory and error of a layer.

    python -m benchmarks.four_bit_kernels [--shapes 1024x320x320,...] [--layers 6] [--repeats 5] [--json FILE]

A graph has so many linear layers of one shape (tokens x inputs x outputs, as in Stable Diffusion 1.5's transformers), added up, with random
weights. Every form has the same integers, in MatMulNBits one scale and zero point a channel, spread over its blocks; `blocks` has one for
each 32 inputs. One thread, sessions in turns there and back; memory is what loading and one call add to a process of their own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import onnx
from benchmarks.rig.report import command_line, write_report
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quad.core.decibels import array_sqnr_db
from quad.core.memory import peak_ram_bytes, release_memory, reset_peak
from quad.runtime.engines.ort import LEFT_OUT, OrtSession, session_options

SHAPES = "1024x320x320,1024x1280x320,256x640x640,256x640x5120,256x2560x640,64x1280x1280,64x5120x1280"
NIBBLE, BLOCK, SPREAD = 15, 32, 64  # the largest integer; inputs of a block with its own scale, and of one without
MIXED, LEAN, DOMAIN = "w4:mixed:80", "w4a16", "com.microsoft"
MS, MB = 1e3, 1e6
Nodes = list[onnx.NodeProto]
Constants = dict[str, onnx.TensorProto]


@dataclass(frozen=True)
class Weight:
    """Integers of 4 bits `(out, in)`, and scale and zero point of each block of inputs `(out, blocks)`."""

    integers: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]

    @staticmethod
    def of(weight: NDArray[np.float32], block: int) -> Weight:
        """Rounded to the nearest."""
        parts = weight.reshape(len(weight), -1, block)
        low, high = np.minimum(parts.min(axis=2), 0), np.maximum(parts.max(axis=2), 0)
        scale = ((high - low) / NIBBLE).astype(np.float32)
        zero = np.rint(-low / scale)
        integers = np.clip(np.rint(parts / scale[..., None]) + zero[..., None], 0, NIBBLE)
        return Weight(integers.reshape(weight.shape).astype(np.uint8), scale, zero.astype(np.uint8))

    def spread(self, block: int) -> Weight:
        """The same with the channel's scale for each block."""
        count = self.integers.shape[1] // block
        return Weight(self.integers, np.repeat(self.scale, count, axis=1), np.repeat(self.zero, count, axis=1))

    @property
    def values(self) -> NDArray[np.float64]:
        """The numbers that it stands for."""
        parts = self.integers.reshape(*self.scale.shape, -1).astype(np.float64) - self.zero[..., None]
        return (parts * self.scale[..., None]).reshape(self.integers.shape)


def packed(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two to a byte along the last axis, the first one low."""
    even = np.pad(nibbles, [(0, 0)] * (nibbles.ndim - 1) + [(0, nibbles.shape[-1] % 2)])
    return np.asarray(even[..., 0::2] | even[..., 1::2] << 4, np.uint8)


def dequantized(name: str, weight: Weight, _: float) -> tuple[Nodes, Constants]:
    """Widened to floats, multiplied as such."""
    inputs = weight.integers.T
    constants = {
        f"{name}/q": helper.make_tensor("", TensorProto.UINT4, inputs.shape, packed(inputs.reshape(1, -1)).tobytes(), raw=True),
        f"{name}/s": numpy_helper.from_array(weight.scale[:, 0]),
        f"{name}/z": helper.make_tensor("", TensorProto.UINT4, [len(weight.zero)], packed(weight.zero.reshape(1, -1)).tobytes(), raw=True),
    }
    nodes = [
        helper.make_node("DequantizeLinear", [*constants], [f"{name}/w"], axis=1),
        helper.make_node("MatMul", ["x", f"{name}/w"], [f"{name}/y"]),
    ]
    return nodes, constants


def in_bytes(name: str, weight: Weight, step: float) -> tuple[Nodes, Constants]:
    """As `w4:mixed:P` has it where the input has 8 bits: widened to bytes when it is loaded, multiplied as such."""
    _, constants = dequantized(name, weight, step)
    constants |= {f"{name}/z": numpy_helper.from_array(weight.zero[:, 0].astype(np.int8)), **_input_steps(name, step)}
    nodes = [
        helper.make_node("Cast", [f"{name}/q"], [f"{name}/w"], to=TensorProto.INT8),
        helper.make_node("QuantizeLinear", ["x", f"{name}/xs", f"{name}/xz"], [f"{name}/x"]),
        helper.make_node(
            "MatMulIntegerToFloat", [f"{name}/{part}" for part in ("x", "w", "xs", "s", "xz", "z")], [f"{name}/y"], domain=DOMAIN
        ),
    ]
    return nodes, constants


def in_nibbles(level: int, block: int = 0, *, rounded: bool = False) -> Callable[[str, Weight, float], tuple[Nodes, Constants]]:
    """MatMulNBits.

    Args:
        level: its `accuracy_level`: 1 float32, 4 inputs rounded to 8 bits by block.
        block: inputs that one scale is for; 0 for those of the whole channel.
        rounded: the input lies on steps of 8 bits, as with `w4:mixed:P`.
    """

    def write(name: str, weight: Weight, step: float) -> tuple[Nodes, Constants]:
        used = weight if block else weight.spread(SPREAD)
        inputs, blocks = weight.integers.shape[1], used.scale.shape[1]
        constants = {
            f"{name}/q": numpy_helper.from_array(packed(weight.integers.reshape(len(weight.integers), blocks, -1))),
            f"{name}/s": numpy_helper.from_array(used.scale.ravel()),
            f"{name}/z": numpy_helper.from_array(packed(used.zero).ravel()),
        }
        sizes = {"K": inputs, "N": len(weight.integers), "bits": 4, "block_size": inputs // blocks, "accuracy_level": level}
        x, before = "x", Nodes()
        if rounded:
            constants |= _input_steps(name, step)
            x, steps = f"{name}/xf", [f"{name}/xs", f"{name}/xz"]
            before = [
                helper.make_node("QuantizeLinear", ["x", *steps], [f"{name}/x"]),
                helper.make_node("DequantizeLinear", [f"{name}/x", *steps], [x]),
            ]
        product = helper.make_node("MatMulNBits", [x, *(f"{name}/{part}" for part in "qsz")], [f"{name}/y"], domain=DOMAIN, **sizes)
        return [*before, product], constants

    return write


def _input_steps(name: str, step: float) -> Constants:
    return {f"{name}/xs": numpy_helper.from_array(np.float32(step)), f"{name}/xz": numpy_helper.from_array(np.uint8(128))}


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write the layers.

    Args:
        precision: of the graph that has it.
        block: inputs of one scale, 0 for a channel's.
        folds: constants are computed when the graph is loaded.
    """

    write: Callable[[str, Weight, float], tuple[Nodes, Constants]]
    precision: str = LEAN
    block: int = 0
    folds: bool = False


FORMS: Mapping[str, Form] = {
    "w4a16: widened at each step": Form(write=dequantized),
    "w4a16: folded": Form(write=dequantized, folds=True),
    "w4a16: MatMulNBits 1": Form(write=in_nibbles(1)),
    "w4a16: MatMulNBits 4": Form(write=in_nibbles(4)),
    "w4a16: MatMulNBits 1, blocks": Form(write=in_nibbles(1, BLOCK), block=BLOCK),
    "mixed: bytes": Form(write=in_bytes, precision=MIXED, folds=True),
    "mixed: MatMulNBits 1": Form(write=in_nibbles(1, rounded=True), precision=MIXED, folds=True),
    "mixed: MatMulNBits 4": Form(write=in_nibbles(4, rounded=True), precision=MIXED, folds=True),
}


def save(file: Path, form: Form, x: NDArray[np.float32], weights: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Write a graph of these layers; what it should answer."""
    step = float(np.abs(x).max() / 127)
    seen = np.clip(np.rint(x / np.float32(step)), -128, 127) * np.float32(step) if form.precision == MIXED else x
    nodes, constants, total = Nodes(), Constants(), np.zeros((len(x), len(weights[0])))
    for number, numbers in enumerate(weights):
        weight = Weight.of(numbers, form.block or numbers.shape[1])
        layer, given = form.write(f"{number}", weight, step)
        nodes, constants = nodes + layer, constants | given
        total += seen.astype(np.float64) @ weight.values.T
    nodes.append(helper.make_node("Sum", [f"{number}/y" for number in range(len(weights))], ["y"]))
    for name, tensor in constants.items():
        tensor.name = name
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)] for name, array in (("x", x), ("y", total))]
    graph = helper.make_graph(nodes, "layers", *ends, [*constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)], ir_version=10)
    onnx.save(model, file, save_as_external_data=True, location=f"{file.stem}.data", size_threshold=1024)
    return total


def session(file: Path, form: Form) -> OrtSession:
    """As the engine loads a graph of that precision."""
    options = session_options(form.precision, 1)
    if form.folds:
        return OrtSession(file, options)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
    return OrtSession(file, options, LEFT_OUT, lean=True)


def memory(file: Path, name: str, x: NDArray[np.float32], pipe: Any) -> None:
    """Send what loading and running adds to this process at its peak."""
    release_memory()
    reset_peak()
    before = peak_ram_bytes()
    loaded = session(file, FORMS[name])
    at_load = peak_ram_bytes()
    loaded.run({"x": x})
    pipe.send((at_load - before, peak_ram_bytes() - before))


def measure(tokens: int, inputs: int, outputs: int, layers: int, repeats: int) -> dict[str, dict[str, float]]:
    """Form -> milliseconds of a layer, dB, megabytes."""
    draw, rows, context = np.random.default_rng(0), dict[str, dict[str, float]](), get_context("spawn")
    x = draw.standard_normal((tokens, inputs)).astype(np.float32)
    weights = [(draw.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32) for _ in range(layers)]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(FORMS)}
        expected = {name: save(file, FORMS[name], x, weights) for name, file in files.items()}
        for name, file in files.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=memory, args=(file, name, x, theirs))
            process.start()
            load, run = ours.recv()
            process.join()
            rows[name] = {"load_mb": load / MB, "peak_mb": run / MB, "file_mb": file.with_suffix(".data").stat().st_size / MB}
        sessions = {name: session(file, FORMS[name]) for name, file in files.items()}
        times: dict[str, list[float]] = {name: [] for name in FORMS}
        for name in sessions:
            rows[name]["db"] = array_sqnr_db(expected[name], sessions[name].run({"x": x}))
        for turn in range(repeats):
            for name in sessions if turn % 2 == 0 else reversed(sessions):
                start = time.process_time()
                sessions[name].run({"x": x})
                times[name].append(time.process_time() - start)
        return {name: {"ms": MS * median(times[name]) / layers, **row} for name, row in rows.items()}


def main() -> int:
    """Measure every shape and print a table of each."""
    parser = command_line(__doc__)
    parser.add_argument("--shapes", default=SHAPES, help="tokens x inputs x outputs, with commas between")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    report = {}
    for shape in options.shapes.split(","):
        tokens, inputs, outputs = map(int, shape.split("x"))
        report[shape] = measure(tokens, inputs, outputs, options.layers, options.repeats)
        print(f"{shape}, {options.layers} layers of {inputs * outputs / MB:.2f} M weights")
        for name, row in report[shape].items():
            sizes = ", ".join(f"{kind} {row[f'{kind}_mb']:.1f} MB" for kind in ("file", "load", "peak"))
            print(f"  {name:30} {row['ms']:7.2f} ms a layer, {row['db']:6.1f} dB, {sizes}", flush=True)
    write_report(options.json, msgspec.to_builtins({"shapes": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
