"""ONNX Runtime on the CPU.

What its defaults do to a QDQ graph, measured with 1.31 (6 convolutions of 160 channels, 8 matmuls, one thread):

- DequantizeLinear of a constant weight is never folded: it runs at every step (16-bit activations: 19.6 ms, folded 15.4 ms).
- A float MatMul with an int8 weight becomes MatMulNBits *with int8 activations*: 36 dB instead of 119 dB.
- Q/DQ pairs of 8-bit activations become real integer kernels (12.3 ms, as float 13.9 ms) where a Q follows the operator at once. In a U-Net
  whose sites are the operators' inputs that is a few matmuls and no convolution, while the weights of all others are dequantized at each
  step: Toyland's U-Net took 20.7 ms at w8a8 and 19.7 ms at mixed:80, as float 16.2 and 15.9 ms, at w8a16 15.5 ms.
- Integer kernels have traps of their own: without VNNI, u8 x s8 products saturate in 16 bits.

Hence, at every precision: weights are folded to float at load, and every Q/DQ of an activation is kept and computed as it is written,
which is what the simulated network computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from quad.core.errors import BackendError, mismatch

FLOAT = "float"
_FATAL = 3
_ELEMENT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int64)": np.int64,
}


def session_options(precision: str, threads: int) -> ort.SessionOptions:
    """Options that run a graph of this precision fast and exactly, see above."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if precision != FLOAT:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class OrtSession:
    """One graph in ONNX Runtime; bound inputs are passed by address, not copied at each step."""

    def __init__(self, model_file: Path, options: ort.SessionOptions) -> None:
        try:
            self._session = ort.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common root but this
            raise BackendError(f"engine ort: cannot load {model_file} ({_first_line(error)}); build the bundle again") from error
        self._where = model_file.parent.name
        nodes = self._session.get_inputs()
        self._inputs = {node.name: tuple(n if isinstance(n, int) else None for n in node.shape) for node in nodes}
        self._dtypes = {node.name: np.dtype(_ELEMENT_TYPES[node.type]) for node in nodes if node.type in _ELEMENT_TYPES}
        self._binding = self._session.io_binding()
        self._binding.bind_output(self._session.get_outputs()[0].name)
        self._held: dict[str, NDArray[Any]] = {}

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        return MappingProxyType(self._inputs)

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """See `Session.bind`; all inputs are checked before the first is bound."""
        # ONNX Runtime holds addresses only: the arrays live as long as they are bound.
        self._held.update(self._bind(inputs))

    def _bind(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            self._check(name, array)
        for name, array in arrays.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return arrays

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """See `Session.run`."""
        step = self._bind(inputs)
        missing = [name for name in self._inputs if name not in step and name not in self._held]
        if missing:
            expected = f"{len(self._inputs)} inputs"
            raise BackendError(mismatch(f"graph {self._where}", expected, f"none for {missing[0]}", "bind it before run"))
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            reason = _first_line(error)
            raise BackendError(f"engine ort: graph {self._where} failed ({reason}); report it with the bundle's name") from error
        output: NDArray[Any] = self._binding.copy_outputs_to_cpu()[0]
        return output

    def _check(self, name: str, array: NDArray[Any]) -> None:
        """Addresses carry no type: a wrong array must be stopped here."""
        where, then = f"graph {self._where}, input {name}", "this is a bug or another graph's adapter"
        if name not in self._inputs:
            raise BackendError(mismatch(where, "an input of the graph", "none of that name", then))
        shape = self._inputs[name]
        fits = len(shape) == array.ndim and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
        if not fits or self._dtypes.get(name) != array.dtype:
            raise BackendError(mismatch(where, f"{self._dtypes.get(name)} {shape}", f"{array.dtype} {array.shape}", then))


class OrtEngine:
    """ONNX Runtime's CPU provider for graphs of one precision."""

    name = "ort"

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def load(self, model_file: Path, threads: int) -> OrtSession:
        """See `Engine.load`."""
        return OrtSession(model_file, session_options(self._precision, threads))


def open_engine(precision: str) -> OrtEngine:
    """The engine for graphs of this precision."""
    return OrtEngine(precision)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
