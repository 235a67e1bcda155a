"""Worker of benchmarks.litert_intel, run by a Python that has LiteRT and OpenVINO and not quad: one file on the CPU and compiled, compared.

    python litert_dispatch.py MODEL.tflite COMPILED.tflite FEEDS.npz RESULT.json

FEEDS holds `<name>/<input>`: every input of the graph, in its own element type, for each name.
"""

import json
import sys
import time

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.interpreter import Interpreter


class Both:
    """LiteRT's interpreter of a file, and the compiled file through the dispatch library."""

    def __init__(self, model: str, compiled: str) -> None:
        self.interpreter = Interpreter(model, num_threads=1)
        self.interpreter.allocate_tensors()
        self.inputs = {detail["name"]: detail for detail in self.interpreter.get_input_details()}
        (self.output,) = self.interpreter.get_output_details()
        self.compiled = CompiledModel.from_file(compiled, HardwareAccelerator.NPU)
        signature = next(iter(self.compiled.get_signature_list().values()))
        self.places = {name: place for place, name in enumerate(signature["inputs"])}
        self.given, self.taken = self.compiled.create_input_buffers(0), self.compiled.create_output_buffers(0)
        self.seconds: list[float] = []

    def on_cpu(self, feed: dict) -> np.ndarray:
        for name, array in feed.items():
            self.interpreter.set_tensor(self.inputs[name]["index"], array)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])

    def dispatched(self, feed: dict) -> np.ndarray:
        for name, array in feed.items():  # buffers of this version know no 16-bit integers: they are handed over as bytes
            self.given[self.places[name]].write(np.ascontiguousarray(array).view(np.int8) if array.dtype == np.int16 else array)
        start = time.perf_counter()
        self.compiled.run_by_index(0, self.given, self.taken)
        shape, dtype = self.output["shape"], np.dtype(self.output["dtype"])
        count = int(np.prod(shape))
        values = self.taken[0].read(2 * count, np.int8).view(np.int16) if dtype == np.int16 else self.taken[0].read(count, dtype)
        self.seconds.append(time.perf_counter() - start)
        return values.reshape(shape).copy()

    def real(self, values: np.ndarray) -> np.ndarray:
        scale, zero = self.output["quantization"]
        return (values.astype(np.float64) - zero) * (scale or 1.0)


def sqnr_db(true: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(true**2) / max(float(np.sum((true - other) ** 2)), 1e-300)))


def main(model: str, compiled: str, feeds_file: str, result_file: str) -> None:
    feeds: dict[str, dict[str, np.ndarray]] = {}
    with np.load(feeds_file) as stored:
        for key in stored.files:
            name, _, entry = key.partition("/")
            feeds.setdefault(name, {})[entry] = stored[key]
    both = Both(model, compiled)
    outputs = {name: both.dispatched(feed) for name, feed in feeds.items()}
    again = {name: bool(np.array_equal(both.dispatched(feed), outputs[name])) for name, feed in feeds.items()}
    sqnr = {name: sqnr_db(both.real(both.on_cpu(feed)), both.real(outputs[name])) for name, feed in feeds.items()}
    names = list(feeds)
    differ = [sqnr_db(both.real(outputs[names[0]]), both.real(outputs[name])) for name in names[1:]]
    slots = sorted({str(array.dtype) for feed in feeds.values() for name, array in feed.items() if ".lora_" in name})
    result = {"sqnr_db": sqnr, "again_equal": again, "others_against_first_db": differ, "slot_dtypes": slots, "ms": 1e3 * min(both.seconds)}
    with open(result_file, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
