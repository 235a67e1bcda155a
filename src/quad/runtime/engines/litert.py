"""LiteRT on the CPU, for `.tflite` graphs with `ports.json` beside them.

The package has two ways to run a graph. The engine takes `Interpreter`; `CompiledModel` is for chips, and on a CPU the poorer one. Measured
with 2.3.0 on Toyland's U-Net at w8a16 (258 inputs of 3.0 MB, one thread; 175 ms a call either way, and the same bits):

- While a `CompiledModel` runs, no other Python thread does, since it keeps the interpreter lock: in three calls another thread had 3 turns,
  beside an `Interpreter` hundreds. A server could answer nobody during a step.
- Its buffers know no int16, so that bytes must be written; one made over a caller's int16 memory as bytes is refused for its shape. Both
  ways copy: all inputs in 0.54 ms there, in 0.18 ms here. That copy is what a switch costs; a graph holds room for one adapter.
- It reports every accelerator on stderr, and its process is 10 MB larger. The interpreter says one line, about its own kernels, which is
  kept off stderr.

Graph inputs keep what they were given from one call to the next, for the memory planner gives their place to nothing else: slots are put
once. Float graphs and 8-bit weights with dynamic activations run in XNNPACK, 16-bit activations in the library's reference kernels, which
are there for their numbers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import BackendError, VerificationError, lack_of, mismatch
from quad.core.ports import Ports
from quad.runtime.engines.engine import Shape, first_line
from quad.runtime.engines.ported import PortedSession, read_ports

# stderr belongs to the process: it is turned away for the first graph alone, and threads take turns.
_TURN, _SAID = Lock(), Event()


@contextmanager
def _quiet() -> Iterator[None]:
    """The library writes its line to the file descriptor itself, once a process, beside a progress bar; what goes wrong it raises."""
    if _SAID.is_set():
        yield
        return
    with _TURN:
        sys.stderr.flush()
        stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(nowhere)
            _SAID.set()


class LiteRtSession(PortedSession):
    """One graph in LiteRT; takes and gives floats like the graphs of other engines.

    Raises:
        BackendError: the library cannot load the file.
        VerificationError: the ports are those of another graph.
    """

    separate_racks = False

    def __init__(self, library: Any, *, model_file: Path, ports: Ports, threads: int) -> None:
        where = f"engine litert: {model_file}"
        try:
            with _quiet():
                self._interpreter = library.Interpreter(model_path=str(model_file), num_threads=threads)
                self._interpreter.allocate_tensors()
        except Exception as error:  # the library's errors have no common root but this
            next_step = "build the bundle again with --target litert"
            raise lack_of(where, error) or BackendError(f"{where}: cannot load it ({first_line(error)}); {next_step}") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(outputs) != 1:
            raise VerificationError(mismatch(str(model_file), "a graph with one output", len(outputs), "build the bundle again"))
        self._threads, self._places = threads, {entry["name"]: entry["index"] for entry in inputs}
        shapes: dict[str, Shape] = {entry["name"]: tuple(map(int, entry["shape"])) for entry in inputs}
        dtypes = {entry["name"]: np.dtype(entry["dtype"]) for entry in inputs}
        super().__init__(ports, model_file.parent.name, shapes=shapes, dtypes=dtypes, output=outputs[0]["name"])
        self._answer = outputs[0]["index"]

    @property
    def threads(self) -> int:
        return self._threads

    def _wrap(self, array: NDArray[Any]) -> Any:
        return array

    def _new_handle(self) -> Any:
        return self._interpreter

    def _put(self, handle: Any, name: str, value: Any) -> None:
        handle.set_tensor(self._places[name], value)

    def _execute(self, handle: Any) -> list[NDArray[Any]]:
        try:
            handle.invoke()
            output: NDArray[Any] = handle.get_tensor(self._answer)
        except Exception as error:
            reason, where = first_line(error), f"engine litert: {self._where}"
            raise lack_of(where, error) or BackendError(f"{where} failed ({reason}); report it with the bundle's name") from error
        return [self._decode(output)]


class LiteRtEngine:
    """LiteRT's CPU kernels; every precision is in the graph itself."""

    name = "litert"

    def __init__(self) -> None:
        """Raises:
        ImportError: LiteRT is not installed.
        """
        from ai_edge_litert import interpreter

        self._library = interpreter

    def load(self, model_file: Path, threads: int, lean: bool = False) -> LiteRtSession:
        """See `Engine.load`; there is no leaner way: weights are mapped from the file."""
        return LiteRtSession(self._library, model_file=model_file, ports=read_ports(model_file, "litert"), threads=threads)


def open_engine(precision: str) -> LiteRtEngine:
    """The engine; its options are the same at every precision."""
    return LiteRtEngine()
