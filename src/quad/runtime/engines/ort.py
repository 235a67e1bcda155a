"""ONNX Runtime on the CPU.

What its defaults do to a QDQ graph, measured with 1.31 (6 convolutions of 160 channels, 8 matmuls, one thread):

- DequantizeLinear of a constant weight is never folded: it runs at every step (16-bit activations: 19.6 ms, folded 15.4 ms).
- A float MatMul with an int8 weight becomes MatMulNBits *with int8 activations*: 36 dB instead of 119 dB.
- Q/DQ pairs of 8-bit activations become real integer kernels (12.3 ms, as float 13.9 ms) where a Q follows the operator at once. In a U-Net
  whose sites are the operators' inputs that is a few matmuls and no convolution, while the weights of all others are dequantized at each
  step: Toyland's U-Net took 20.7 ms at w8a8 and 19.7 ms at mixed:80, as float 16.2 and 15.9 ms, at w8a16 15.5 ms.
- Integer kernels have traps of their own: on x86 without VNNI, u8 x s8 products saturate in 16 bits, unless it is told to be precise. Told
  so with VNNI, where they do not, it takes the slow way all the same: SD1.5's U-Net 1.3 times as fast as in float, instead of 2.4 times.

Hence, at every precision: weights are folded to float at load, and every Q/DQ of an activation is kept and computed as it is written,
which is what the simulated network computes. Where integer kernels are wanted, the graph names them (ADR 8).

Folded, 8-bit weights take four times their files, 4-bit ones eight. A graph of `LARGE_BYTES`, half of it at 4 bits, whose kernels are all
float keeps them as they are, mapped from the file, and widens them as it runs: a quarter of the memory. Nor does it keep memory between
operators: Stable Diffusion 1.5's pipeline at 512 pixels held 7.1 GB with the library's arena and all weights folded but the U-Net's,
3.0 GB so.

Nor does such a graph reuse the buffers of tensors that are done with: the library plans that over the whole graph, so a buffer of the first
block is held until the last block, which has one of the same size. One call of that U-Net, whose own tensors take 154 MB at most and its
weights 0.87 GB: 1.78 GB with reuse, 1.58 to 1.63 GB without, at 8 % more time. The rest is glibc's heap, which keeps what lies below a
block in use: with every block of 1 MB or more apart (M_MMAP_THRESHOLD) 1.14 GB, but new pages each time cost 1.7 to 2.7 times the time.
With those of 16 MB apart the U-Net of 256 pixels takes what it took, in the same time; the decoder, whose own tensors take 200 MB at most,
434 to 447 MB in place of 549 to 898, which hang on where blocks happen to lie, at 3 to 7 % more time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from quad.core.errors import BackendError, lack_of
from quad.core.memory import large_blocks_apart
from quad.core.precision import ALL_AS_WRITTEN, has_four_bits
from quad.runtime.engines.engine import BoundSession, first_line
from quad.runtime.engines.exact_products import with_exact_products
from quad.runtime.engines.processor import products_saturate

FLOAT, AS_WRITTEN = "float", "w8a16"
LARGE_BYTES = 32_000_000
LEFT_OUT = ("ConstantFolding",)  # what would make floats of a large graph's weights at load
_FATAL = 3
_ELEMENT_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int64)": np.dtype(np.int64),
}
_TYPE_NUMBERS = dict(zip(_ELEMENT_TYPES.values(), (1, 3, 5, 7), strict=True))  # ONNX's own


def session_options(precision: str, threads: int) -> ort.SessionOptions:
    """Options that run a graph of this precision fast and exactly, see above."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if precision != FLOAT:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.x64quantprecision", "1" if products_saturate() else "0")
    return options


def is_large(model_file: Path, precision: str) -> bool:
    """Does memory count more than time: a graph of many weights that all become floats."""
    if precision not in ALL_AS_WRITTEN or not model_file.is_file():
        return False
    files = [file for file in model_file.parent.iterdir() if file == model_file or file.suffix == ".data"]
    limit = LARGE_BYTES // 2 if has_four_bits(precision) else LARGE_BYTES
    return sum(file.stat().st_size for file in files) >= limit


def _readable(model_file: Path, options: ort.SessionOptions) -> str | bytes:
    """The file; where integer products of computed values would saturate, its bytes with these in float."""
    if not products_saturate():
        return str(model_file)
    data = model_file.read_bytes()
    exact = with_exact_products(data)
    if exact is data:
        return str(model_file)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model_file.parent))
    return exact


class OrtSession(BoundSession):
    """One graph in ONNX Runtime; bound inputs are passed by address, not copied at each step."""

    def __init__(self, model_file: Path, options: ort.SessionOptions, left_out: Sequence[str] = (), *, lean: bool = False) -> None:
        """Args:
        left_out: the library's own rewrites that this graph is not to undergo.
        lean: its tensors' memory goes back to the system as they are freed.
        """
        self._memory = large_blocks_apart if lean else nullcontext
        try:
            self._session = ort.InferenceSession(
                _readable(model_file, options), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*left_out]
            )
        except Exception as error:  # the library's errors have no common root but this
            raise lack_of(f"engine ort: {model_file}", error) or BackendError(
                f"engine ort: cannot load {model_file} ({first_line(error)}); build the bundle again"
            ) from error
        nodes = self._session.get_inputs()
        shapes = {node.name: tuple(n if isinstance(n, int) else None for n in node.shape) for node in nodes}
        dtypes = {node.name: _ELEMENT_TYPES[node.type] for node in nodes if node.type in _ELEMENT_TYPES}
        super().__init__(model_file.parent.name, shapes, dtypes)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def twin(self) -> OrtSession:
        """See `quad.runtime.engines.memo.Shareable`: the library runs one graph for several threads at once."""
        twin = copy(self)
        twin._unbind()
        return twin

    @property
    def threads(self) -> int:
        return int(self._session.get_session_options().intra_op_num_threads)

    def _wrap(self, array: NDArray[Any]) -> Any:
        # The plain function looks up the device anew each time: 2.5 times as long.
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _TYPE_NUMBERS[array.dtype])

    def _new_handle(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        for name in self._outputs:
            binding.bind_output(name)
        return binding

    def _put(self, handle: ort.IOBinding, name: str, value: Any) -> None:
        handle.bind_ortvalue_input(name, value)

    def _execute(self, handle: ort.IOBinding) -> list[NDArray[Any]]:
        try:
            with self._memory():
                self._session.run_with_iobinding(handle)
        except Exception as error:
            reason = first_line(error)
            raise lack_of(f"engine ort: {self._where}", error) or BackendError(
                f"engine ort: {self._where} failed ({reason}); report it with the bundle's name"
            ) from error
        outputs: list[NDArray[Any]] = handle.copy_outputs_to_cpu()
        return outputs


class OrtEngine:
    """ONNX Runtime's CPU provider for graphs of one precision."""

    name = "ort"

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def load(self, model_file: Path, threads: int, lean: bool = False) -> OrtSession:
        """See `Engine.load`; a large graph is loaded lean anyway."""
        options = session_options(self._precision, threads)
        if not (lean or is_large(model_file, self._precision)):
            return OrtSession(model_file, options)
        options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
        return OrtSession(model_file, options, LEFT_OUT if self._precision in ALL_AS_WRITTEN else (), lean=True)


def open_engine(precision: str) -> OrtEngine:
    """The engine for graphs of this precision."""
    return OrtEngine(precision)
