"""One graph in one engine in a process of its own, which runs when it is told to: so sides can take turns and each has its own memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from quad.core.memory import peak_ram_bytes
from quad.core.precision import FLOATS
from quad.core.slots import SlotTable
from quad.evaluate.bench.timing import median
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.graph import bind_buffers

COMPONENT = "unet"
_SEED, _SWITCHES = 0, 200
_EIGHTH = 8
_HINT = "INFERENCE_PRECISION_HINT"


class Side:
    """A child process that holds one loaded graph.

    Args:
        float_hint: OpenVINO's `INFERENCE_PRECISION_HINT` in place of the engine's own; `auto` for what the library takes by itself.
    """

    def __init__(self, name: str, *, engine: str, precision: str, file: Path, threads: int, float_hint: str = "") -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, engine, precision, file, threads, float_hint), daemon=True)
        self._process.start()
        theirs.close()  # else a child that is killed leaves this side waiting for ever
        self.loaded = self._answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(ConnectionError):  # it has ended already
            self._pipe.send(("stop", None))
        self._process.join(timeout=30)

    def ask(self, command: str, argument: Any = None) -> Any:
        """The answer to `step` (ms), `timed_step` (ms, CPU ms), `rss` (peak bytes), `switch` (counts -> medians in ms), or `trace` (is a
        way there and back without trace)."""
        self._pipe.send((command, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"{self.name}: its process was ended, perhaps for want of memory") from None
        if kind == "error":
            raise RuntimeError(f"{self.name}: {answer}")
        return answer


def _serve(pipe: Connection, engine: str, precision: str, file: Path, threads: int, float_hint: str) -> None:
    if float_hint:
        hint_floats(float_hint)
    try:
        loaded = Loaded(engine, precision=precision, file=file, threads=threads)
        pipe.send(("done", loaded.seconds))
        while (command := pipe.recv())[0] != "stop":
            pipe.send(("done", getattr(loaded, command[0])(command[1])))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def hint_floats(kind: str) -> None:
    """OpenVINO's floats of this kind from now on, in this process."""
    from quad.runtime.engines import openvino

    own = openvino.compile_options

    def options(threads: int, float_type: str) -> dict[str, Any]:
        without = {name: value for name, value in own(threads, float_type).items() if name != _HINT}
        return without if kind == "auto" else {**without, _HINT: kind}

    openvino.compile_options = options


class Loaded:
    """A session with noise on its inputs and an adapter of noise in its slots."""

    def __init__(self, engine: str, *, precision: str, file: Path, threads: int) -> None:
        start = perf_counter()
        self._session = open_engine(engine, (), precision).load(file, threads)
        self.seconds = perf_counter() - start
        slots_file = file.parent.parent.parent / "slots.json"
        table = msgspec.json.decode(slots_file.read_bytes(), type=SlotTable)
        self._dtype = np.dtype(table.slots[0].dtype) if precision not in FLOATS else np.dtype(np.float32)
        self._shapes = {name: shape for name, shape in table.input_shapes().items() if name in self._session.inputs}
        draw = np.random.default_rng(_SEED)
        self._feed = {name: draw.standard_normal(_static(shape)).astype(np.float32)
                      for name, shape in self._session.inputs.items() if name not in self._shapes}  # fmt: skip
        self._feed["timestep"][:] = 500.0
        if self._shapes:
            self._bind(self._adapter(1))

    @property
    def has_slots(self) -> bool:
        """Are adapters inputs of this graph."""
        return bool(self._shapes)

    def _bind(self, buffers: Buffers) -> None:
        self._bound = buffers  # held as long as it is bound
        bind_buffers(self._session, buffers, self._shapes)

    def step(self, _: object) -> float:
        start = perf_counter()
        self._session.run(self._feed)
        return (perf_counter() - start) * 1e3

    def timed_step(self, _: object) -> tuple[float, float]:
        """Wall milliseconds, and CPU milliseconds of all threads, which other work on the machine moves less."""
        start = process_time()
        ms = self.step(None)
        return ms, (process_time() - start) * 1e3

    def rss(self, _: object) -> int:
        return peak_ram_bytes()

    def trace(self, _: object) -> dict[str, bool]:
        """A, B, A: is the last output the first, bit for bit, and B's another."""
        adapters = {name: self._adapter(int(name)) for name in ("1", "2")}
        outputs = []
        for name in ("1", "2", "1"):
            self._bind(adapters[name])
            outputs.append(self._session.run(self._feed))
        return {"same": bool(np.array_equal(outputs[0], outputs[2])), "different": not np.array_equal(outputs[0], outputs[1])}

    def switch(self, counts: Sequence[int]) -> dict[int, float]:
        """Median ms of binding another resident adapter, with so many of them registered."""
        adapters: dict[str, Buffers] = {}
        medians = {}
        for count in counts:
            for number in range(len(adapters) + 1, count + 1):
                adapters[str(number)] = self._adapter(number)
                self._bind(adapters[str(number)])
            medians[count] = median([self._switched(adapters, str(1 + k % count)) for k in range(_SWITCHES)])
        return medians

    def _switched(self, adapters: dict[str, Buffers], name: str) -> float:
        start = perf_counter()
        self._bind(adapters[name])
        return (perf_counter() - start) * 1e3

    def _adapter(self, number: int) -> Buffers:
        """An adapter of noise; its integers fill an eighth of their range."""
        draw = np.random.default_rng(number)
        if self._dtype == np.float32:
            return Buffers({name: 0.02 * draw.standard_normal(shape, np.float32) for name, shape in self._shapes.items()})
        top = int(np.iinfo(self._dtype).max) // _EIGHTH
        return Buffers({name: draw.integers(-top, top, shape, self._dtype) for name, shape in self._shapes.items()})


def _static(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in shape)
