"""Qualcomm's HTP through ONNX Runtime's QNN provider: on a phone the chip itself, on x86 its emulator.

The graph is a context binary (`model.onnx` points to it) in which every value is an integer; `ports.json` beside it says how floats
enter and leave. No node may fall back to the CPU: what the chip does not take is an error, not a slow surprise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import onnxruntime_qnn
from numpy.typing import NDArray

from quad.core.errors import BackendError, VerificationError, mismatch
from quad.core.ports import PORTS_FILE, Ports
from quad.runtime.engines.engine import Arrays, BoundSession, Shape, first_line

PROVIDER = "QNNExecutionProvider"
# stdout belongs to the process, and the provider registers once: threads that open sessions take turns.
_TURN = RLock()
_FATAL = 4
_ELEMENT_TYPES = {
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
}


def htp_devices() -> list[Any]:
    """The devices that the provider offers; it is registered at the first call.

    Raises:
        BackendError: the provider cannot be loaded, or offers nothing on this machine.
    """
    try:
        with _TURN:
            if not (devices := _offered()):
                _register()
                devices = _offered()
    except Exception as error:  # the library's errors have no common root but this
        raise BackendError(f"engine qnn: cannot load its provider ({first_line(error)}); install quad[qnn] again") from error
    if not devices:
        raise BackendError(mismatch("engine qnn", "a Qualcomm HTP or its emulator", "none on this machine", "choose another --engine"))
    return devices


@cache
def _register() -> None:
    """Once a process: a second time is an error of the library."""
    with _stdout_to_stderr():
        ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """The vendor's library prints to the file descriptor itself; stdout is for results alone."""
    with _TURN:
        sys.stdout.flush()
        stdout = os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)


def _offered() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]


def htp_session(model_file: Path, threads: int = 1, options: Mapping[str, str] | None = None, config: Mapping[str, str] | None = None
                ) -> ort.InferenceSession:  # fmt: skip
    """A session with every node on the HTP.

    Args:
        options: of the provider, beside those that always hold.
        config: entries of the session.

    Raises:
        BackendError: there is no HTP, or it does not take the graph.
    """
    session = ort.SessionOptions()
    session.intra_op_num_threads = threads
    session.log_severity_level = _FATAL
    for key, value in {"session.disable_cpu_ep_fallback": "1", **(config or {})}.items():
        session.add_session_config_entry(key, value)
    provider_options = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "htp_performance_mode": "burst", **(options or {})}
    session.add_provider_for_devices(htp_devices()[:1], provider_options)
    try:
        with _stdout_to_stderr():
            return ort.InferenceSession(str(model_file), session)
    except Exception as error:  # as above
        next_step = "build the bundle for this chip, see quad build --soc"
        raise BackendError(f"engine qnn: cannot load {model_file} ({first_line(error)}); {next_step}") from error


def read_ports(model_file: Path) -> Ports:
    """The `ports.json` beside a graph.

    Raises:
        VerificationError: there is none, or it is something else.
    """
    path = model_file.with_name(PORTS_FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ports)
    except (OSError, msgspec.MsgspecError) as error:
        next_step = "build the bundle with --target qnn-htp"
        raise VerificationError(mismatch(str(path), "the graph's ports", first_line(error), next_step)) from error


class QnnSession(BoundSession):
    """One graph on the HTP; takes and gives floats like the graphs of other engines.

    Args:
        session: whose graph's inputs are integers.
        ports: of that graph.

    Raises:
        VerificationError: they are those of another graph.
    """

    def __init__(self, session: ort.InferenceSession, ports: Ports, where: str) -> None:
        self._session, self._ports = session, ports
        nodes = session.get_inputs()
        shapes: dict[str, Shape] = {node.name: tuple(node.shape) for node in nodes}
        dtypes = {node.name: _ELEMENT_TYPES[node.type] for node in nodes if node.type in _ELEMENT_TYPES}
        super().__init__(where, shapes, dtypes)
        self._outer = {name: self._outer_shape(name, shape) for name, shape in shapes.items()}
        self._output = session.get_outputs()[0].name
        if odd := sorted(ports.inputs.keys() - shapes.keys()) or sorted({self._output} - ports.outputs.keys()):
            raise VerificationError(mismatch(f"graph {where}, {PORTS_FILE}", "its inputs and its output", odd[0], "build the bundle again"))
        self._feed: dict[str, ort.OrtValue] = {}

    def _outer_shape(self, name: str, shape: Shape) -> Shape:
        port = self._ports.inputs.get(name)
        return shape[:1] if port is not None and port.sinusoid is not None else shape

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """As the caller sees them: a timestep is one number."""
        return MappingProxyType(self._outer)

    @property
    def threads(self) -> int:
        return int(self._session.get_session_options().intra_op_num_threads)

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Session.run`; floats are quantized on their way in."""
        for name, array in inputs.items():
            self._check_float(name, array)
        ports = self._ports.inputs
        return super().run({name: ports[name].encode(array) if name in ports else array for name, array in inputs.items()})

    def _check_float(self, name: str, array: NDArray[Any]) -> None:
        """Refuse an array that `encode` would quietly turn into something else."""
        port = self._ports.inputs.get(name)
        if port is None:
            return
        kind = "f" if port.encoding is not None else "i"
        shape = self._outer[name]
        if array.dtype.kind != kind or array.dtype.itemsize > (4 if kind == "f" else 8) or array.shape != shape:
            where, next_step = f"{self._where}, input {name}", "this is a bug or another graph's input"
            expected = f"{'float32' if kind == 'f' else 'integers'} {shape}"
            raise BackendError(mismatch(where, expected, f"{array.dtype} {array.shape}", next_step))

    def _wrap(self, array: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(array)

    def _put(self, name: str, value: Any) -> None:
        self._feed[name] = value

    def _execute(self) -> NDArray[Any]:
        try:
            output = self._session.run_with_ort_values([self._output], self._feed)[0].numpy()
        except Exception as error:
            reason = first_line(error)
            raise BackendError(f"engine qnn: {self._where} failed ({reason}); report it with the bundle's name") from error
        return self._ports.outputs[self._output].decode(output)


class QnnEngine:
    """The HTP, or its emulator."""

    name = "qnn"

    def load(self, model_file: Path, threads: int, lean: bool = False) -> QnnSession:
        """See `Engine.load`; there is no leaner way."""
        ports = read_ports(model_file)
        return QnnSession(htp_session(model_file, threads), ports, model_file.parent.name)


def open_engine(precision: str) -> QnnEngine:
    """The engine; every precision is in the graph itself.

    Raises:
        BackendError: there is no HTP and no emulator on this machine.
    """
    htp_devices()
    return QnnEngine()
