"""OpenVINO on the CPU.

What it does to our graphs by itself, measured with 2026.4 on Toyland's U-Net (w8a16, one thread; SQNR to ONNX Runtime's output, which
computes every Q/DQ as it is written):

- Q/DQ pairs of 16-bit activations are taken out, and their clipping with them: on an input six times too loud 14 dB. A Clamp before each
  keeps the range that adapters were distilled in: 77 dB, at 1 % of the time. The rounding stays lost.
- Matmuls of int8 weights quantize their activations on the fly: 51 dB. Not so in accuracy mode: 69 dB, at 2 % of the time.
- Q/DQ pairs of 8-bit activations become integer kernels in both modes; integer slot inputs need nothing special.
- On processors without VNNI those kernels add pairs of u8 x s8 products in 16 bits, which saturate: 32 % off on a small U-Net at mixed:50.
  There the rewrite to integer kernels is switched off, and every Q/DQ is computed in float as it is written.
- Threads are pinned to cores, by which two processes would sit on the same ones: switched off.
- Importing the package sends a usage report over the network, and writes an id for it into the home directory, unless the part that does so
  is missing: it is made missing.
- Several Cores in one process can leave a thread with a signal stack that is gone, and the next signal ends the process: there is one Core.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import BackendError, lack_of
from quad.core.float_type import BF16, F32
from quad.runtime.engines.engine import BoundSession
from quad.runtime.engines.processor import products_saturate

REPORTER = "openvino_telemetry"
EIGHT_BIT_LEVELS = 256
CAPABILITY = "BF16"


def compile_options(threads: int, float_type: str = F32) -> dict[str, Any]:
    """Options that run a graph of any precision fast and as it is written, see above; nothing is cached on disk."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": float_type,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "CACHE_DIR": "",
        **({"LP_TRANSFORMS_MODE": False} if products_saturate() else {}),
    }


def keep_clipping(model: Any, clamp: Callable[..., Any]) -> None:
    """Write the range of each activation of more than 8 bits into the graph as a Clamp of its own.

    Args:
        model: changed in place.
        clamp: the library's, of `(input, low, high)`.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and node.get_attributes()["levels"] > EIGHT_BIT_LEVELS:
            low, high = (np.asarray(node.input_value(place).get_node().data) for place in (1, 2))
            if low.size == high.size == 1:
                node.input(0).replace_source_output(clamp(node.input_value(0), low.item(), high.item()).output(0))


class OpenVinoSession(BoundSession):
    """One graph in OpenVINO; bound inputs are passed by address, not copied at each step."""

    def __init__(self, library: Any, core: Any, *, model_file: Path, threads: int, float_type: str = F32) -> None:
        try:
            model = core.read_model(str(model_file))
            keep_clipping(model, library.opset1.clamp)
            self._compiled = core.compile_model(model, "CPU", compile_options(threads, float_type))
        except Exception as error:  # the library's errors have no common root but this
            next_step = "choose --engine ort or build the bundle with --target openvino"
            raise lack_of(f"engine openvino: {model_file}", error) or BackendError(
                f"engine openvino: cannot load {model_file} ({_reason(error)}); {next_step}"
            ) from error
        self._tensor = library.Tensor
        # A port also carries the names of what was folded into it; its node keeps the graph's own.
        ports = {port.get_node().get_friendly_name(): port for port in self._compiled.inputs}
        shapes = {name: tuple(n.get_length() if n.is_static else None for n in port.get_partial_shape()) for name, port in ports.items()}
        dtypes = {name: port.get_element_type().to_dtype() for name, port in ports.items()}
        super().__init__(model_file.parent.name, shapes, dtypes)
        self._places = {name: place for place, name in enumerate(ports)}

    @property
    def threads(self) -> int:
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def _wrap(self, array: NDArray[Any]) -> Any:
        return self._tensor(array if array.flags.writeable else _unlocked(array), shared_memory=True)

    def _new_handle(self) -> Any:
        return self._compiled.create_infer_request()

    def _put(self, handle: Any, name: str, value: Any) -> None:
        handle.set_input_tensor(self._places[name], value)

    def _execute(self, handle: Any) -> list[NDArray[Any]]:
        try:
            handle.infer()
        except Exception as error:
            reason = _reason(error)
            raise lack_of(f"engine openvino: {self._where}", error) or BackendError(
                f"engine openvino: {self._where} failed ({reason}); report it with the bundle's name"
            ) from error
        return [handle.get_output_tensor(place).data.copy() for place in range(len(self._compiled.outputs))]


class OpenVinoEngine:
    """OpenVINO's CPU plugin."""

    name = "openvino"

    def __init__(self, float_type: str = F32) -> None:
        """Args:
            float_type: of what is no integer in a graph.

        Raises:
            ImportError: OpenVINO is not installed.
        """
        self._float_type = float_type
        sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type]
        import openvino

        self._library, self._core = openvino, _process_core()

    def load(self, model_file: Path, threads: int, lean: bool = False) -> OpenVinoSession:
        """See `Engine.load`; there is no leaner way."""
        return OpenVinoSession(self._library, self._core, model_file=model_file, threads=threads, float_type=self._float_type)

    def in_bf16(self) -> OpenVinoEngine | None:
        """See `quad.runtime.engines.float_types`; without the instructions the library would widen every number, and lose time."""
        return OpenVinoEngine(BF16) if CAPABILITY in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else None


def open_engine(precision: str) -> OpenVinoEngine:
    """The engine; its options are the same at every precision."""
    return OpenVinoEngine()


@cache
def _process_core() -> Any:
    """The process's one `openvino.Core`, never released: each one that goes takes a thread's signal stack along (ADR 21)."""
    import openvino

    return openvino.Core()


def _unlocked(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory without the read-only mark: OpenVINO takes no marked array, though it never writes to an input."""
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    unlocked: NDArray[Any] = np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
    return unlocked


def _reason(error: Exception) -> str:
    """The last line that says something: the first ones name the library's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
