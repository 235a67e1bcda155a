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
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn
from numpy.typing import NDArray

from quad.core.errors import BackendError, mismatch
from quad.core.ports import Ports
from quad.runtime.engines.engine import Shape, first_line
from quad.runtime.engines.ported import PortedSession, read_ports

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


class QnnSession(PortedSession):
    """One graph on the HTP; takes and gives floats like the graphs of other engines.

    Args:
        session: whose graph's inputs are integers.
        ports: of that graph.

    Raises:
        VerificationError: they are those of another graph.
    """

    def __init__(self, session: ort.InferenceSession, ports: Ports, where: str) -> None:
        self._session = session
        nodes = session.get_inputs()
        shapes: dict[str, Shape] = {node.name: tuple(node.shape) for node in nodes}
        dtypes = {node.name: _ELEMENT_TYPES[node.type] for node in nodes if node.type in _ELEMENT_TYPES}
        super().__init__(ports, where, shapes=shapes, dtypes=dtypes, output=session.get_outputs()[0].name)

    @property
    def threads(self) -> int:
        return int(self._session.get_session_options().intra_op_num_threads)

    def _wrap(self, array: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(array)

    def _new_handle(self) -> dict[str, ort.OrtValue]:
        return {}

    def _put(self, handle: dict[str, ort.OrtValue], name: str, value: Any) -> None:
        handle[name] = value

    def _execute(self, handle: dict[str, ort.OrtValue]) -> list[NDArray[Any]]:
        try:
            output = self._session.run_with_ort_values([self._output], handle)[0].numpy()
        except Exception as error:
            reason = first_line(error)
            raise BackendError(f"engine qnn: {self._where} failed ({reason}); report it with the bundle's name") from error
        return [self._decode(output)]


class QnnEngine:
    """The HTP, or its emulator."""

    name = "qnn"

    def load(self, model_file: Path, threads: int, lean: bool = False) -> QnnSession:
        """See `Engine.load`; there is no leaner way."""
        ports = read_ports(model_file, "qnn-htp")
        return QnnSession(htp_session(model_file, threads), ports, model_file.parent.name)


def open_engine(precision: str) -> QnnEngine:
    """The engine; every precision is in the graph itself.

    Raises:
        BackendError: there is no HTP and no emulator on this machine.
    """
    htp_devices()
    return QnnEngine()
