"""The half of a session that engines share whose graphs take numbers their own way: `ports.json` beside the graph says how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from quad.core.errors import BackendError, VerificationError, mismatch
from quad.core.ports import PORTS_FILE, Port, Ports
from quad.runtime.engines.engine import Arrays, BoundSession, Shape, first_line


def read_ports(model_file: Path, target: str) -> Ports:
    """The `ports.json` beside a graph.

    Args:
        target: whose builds write it, for the message.

    Raises:
        VerificationError: there is none, or it is something else.
    """
    path = model_file.with_name(PORTS_FILE)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ports)
    except (OSError, msgspec.MsgspecError) as error:
        next_step = f"build the bundle with --target {target}"
        raise VerificationError(mismatch(str(path), "the graph's ports", first_line(error), next_step)) from error


class PortedSession(BoundSession):
    """A `BoundSession` that takes and gives floats like the graphs of other engines, whatever its graph takes and gives.

    Args:
        ports: of the graph.
        graph, shapes, dtypes: see `BoundSession`, of the graph itself.
        output: the graph's output that `run` answers with.

    Raises:
        VerificationError: the ports are those of another graph.
    """

    def __init__(self, ports: Ports, graph: str, *, shapes: Mapping[str, Shape], dtypes: Mapping[str, DTypeLike], output: str) -> None:
        super().__init__(graph, shapes, dtypes)
        self._ports, self._output = ports, output
        self._outer = {name: shape[:1] if _is_timestep(ports.inputs.get(name)) else shape for name, shape in shapes.items()}
        if odd := sorted(ports.inputs.keys() - shapes.keys()) or sorted({output} - ports.outputs.keys()):
            raise VerificationError(mismatch(f"graph {graph}, {PORTS_FILE}", "its inputs and its output", odd[0], "build the bundle again"))

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """As the caller sees them: a timestep is one number."""
        return MappingProxyType(self._outer)

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Session.run`; floats are quantized on their way in."""
        for name, array in inputs.items():
            self._check_outer(name, array)
        ports = self._ports.inputs
        return super().run({name: ports[name].encode(array) if name in ports else array for name, array in inputs.items()})

    def _decode(self, output: NDArray[Any]) -> NDArray[Any]:
        """The graph's own numbers as the caller gets them."""
        return self._ports.outputs[self._output].decode(output)

    def _check_outer(self, name: str, array: NDArray[Any]) -> None:
        """Refuse an array that `encode` would quietly turn into something else."""
        port = self._ports.inputs.get(name)
        if port is None:
            return
        real = port.encoding is not None or np.dtype(port.dtype).kind == "f"
        shape = self._outer[name]
        if array.dtype.kind != ("f" if real else "i") or array.dtype.itemsize > (4 if real else 8) or array.shape != shape:
            where, next_step = f"{self._where}, input {name}", "this is a bug or another graph's input"
            expected = f"{'float32' if real else 'integers'} {shape}"
            raise BackendError(mismatch(where, expected, f"{array.dtype} {array.shape}", next_step))


def _is_timestep(port: Port | None) -> bool:
    return port is not None and port.sinusoid is not None
