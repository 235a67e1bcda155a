"""The memory plan: which graphs of a pipeline stay in memory, and which are there only while they run.

`keep-all` holds all four. `balanced` holds the U-Net, which takes longest to load and runs longest; the others come and go around it.
`minimal` holds none: text encoder, VAE encoder, U-Net and VAE decoder come and go one after the other, each loaded for memory rather than
time. Under one plan a picture is always the same, bit for bit; `keep-all` and `balanced` agree, and `minimal` adds floats in another order
where an engine would have widened a small graph's weights (a 1e-5 of an output).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

from numpy.typing import NDArray

from quad.core.errors import BackendError, UsageError, VerificationError, mismatch
from quad.core.memory import release_memory
from quad.core.slots import UNET
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.bundle import COMPONENTS, Bundle
from quad.runtime.engines.binding import Binder
from quad.runtime.engines.bound_session import Arrays, Shape
from quad.runtime.engines.engine import Engine, SwitchSession
from quad.runtime.engines.fair_lock import Turns
from quad.runtime.engines.onnx_inputs import graph_inputs

# Memory plan -> the components that stay.
PLANS: Mapping[str, tuple[str, ...]] = {"keep-all": COMPONENTS, "balanced": (UNET,), "minimal": ()}
LEAN = "minimal"  # the plan whose graphs are loaded for memory rather than time


@dataclass(frozen=True)
class Slots:
    """The slot inputs that a bundle's table promises of one graph: name -> shape."""

    component: str
    shapes: Mapping[str, Shape]

    def check(self, inputs: Mapping[str, Shape]) -> None:
        """Raises:
        VerificationError: the graph lacks one, or has it in another shape.
        """
        for name, shape in self.shapes.items():
            found = inputs.get(name)
            if found != shape:
                raise VerificationError(mismatch(f"graph {self.component}, input {name}", shape, found, "build the bundle again"))


class Graph:
    """One component's graph, a `Runnable` that is loaded when it is needed and remembers which adapter belongs into it.

    Calls from several threads take turns; who needs several of them to belong together holds `loaded()` around them.
    """

    def __init__(self, load: Callable[[], SwitchSession], slots: Slots, kept: bool, budget: Turns) -> None:
        """Args:
        load: called each time that the graph is needed and not there.
        slots: what its bundle says of its slot inputs.
        kept: once loaded, it stays.
        budget: of threads, shared by all graphs: who runs uses all of it.
        """
        self._load, self._slots, self._kept, self._budget = load, slots, kept, budget
        self._own = RLock()
        self._users = 0
        self._session: SwitchSession | None = None
        self._binder: Binder | None = None
        self._shapes: Mapping[str, Shape] | None = None
        self._wanted: tuple[Buffers, str | None] | None = None

    @property
    def has_slots(self) -> bool:
        return bool(self._slots.shapes)

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """See `Runnable.inputs`; remembered, so that the graph is loaded for it once at most."""
        if self._shapes is None:
            with self.loaded():
                pass
        assert self._shapes is not None
        return self._shapes

    def look_at(self, model_file: Path) -> None:
        """Check the slot inputs, and remember all, by what its file says; where that cannot be read, by loading it.

        Raises:
            VerificationError, BackendError: as `loaded`.
        """
        shapes = graph_inputs(model_file)
        if shapes is None:
            with self.loaded():
                return
        self._slots.check(shapes)
        self._shapes = shapes

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Have the graph in memory; when the last block is left, it goes again, unless it is kept.

        Raises:
            BackendError: the engine cannot load it. VerificationError: it is not what its bundle promises.
        """
        with self._own:
            self._users += 1
            try:
                if self._session is None:
                    self._open()
                yield
            finally:
                self._users -= 1
                if not self._users and not self._kept:
                    self._drop()

    def bind(self, buffers: Buffers, name: str | None = None) -> None:
        """Make these the slot inputs, of which there may be none, now and whenever the graph is loaded again; see `Binder.bind`."""
        if not self._slots.shapes:
            return
        with self._own:
            if self._binder is not None and not (self._wanted is not None and self._wanted[0] is buffers):
                self._binder.bind(buffers, name)
            self._wanted = (buffers, name)

    def forget(self, name: str) -> None:
        """See `Binder.forget`; waits for nobody."""
        binder = self._binder
        if binder is not None:
            binder.forget(name)

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Runnable.run`."""
        with self.loaded(), self._budget:
            assert self._session is not None
            return self._session.run(inputs)

    def _open(self) -> None:
        session = self._load()
        self._slots.check(session.inputs)
        self._shapes = dict(session.inputs)
        binder = Binder({"": session}, {"": list(self._slots.shapes)})
        if self._wanted is not None:
            binder.bind(*self._wanted)
        self._session, self._binder = session, binder

    def _drop(self) -> None:
        self._session = self._binder = None
        release_memory()


def open_graphs(bundle: Bundle, engine: Engine, threads: int, memory: str) -> dict[str, Graph]:
    """The graphs of a bundle under a memory plan; those that stay are loaded now.

    Buffers are made of a slot table's numbers only after the graphs have borne it out, each by its session or, unloaded, by its file.

    Raises:
        UsageError: no plan has that name.
        BackendError: a graph cannot be loaded. VerificationError: one lacks a slot input, or has it in another shape.
    """
    if memory not in PLANS:
        raise UsageError(mismatch("memory", f"one of {', '.join(PLANS)}", repr(memory), "choose one of these"))
    slots, kept, budget = bundle.slots, PLANS[memory], Turns()
    if odd := sorted({slot.component for slot in slots.slots} - set(COMPONENTS)):
        raise VerificationError(mismatch("slots", f"slots of {', '.join(COMPONENTS)}", odd[0], "build the bundle again"))
    graphs = {}
    for name in COMPONENTS:
        load = partial(_load, engine, bundle, name, threads, memory == LEAN)
        graphs[name] = graph = Graph(load, Slots(name, slots.of(name).input_shapes()), name in kept, budget)
        if name in kept:
            with graph.loaded():
                pass
        elif name == UNET or graph.has_slots:
            graph.look_at(bundle.graph(name))
    return graphs


def _load(engine: Engine, bundle: Bundle, component: str, threads: int, lean: bool) -> SwitchSession:
    """A graph of a bundle, as it was when that was opened; where it cannot be loaded, the message says for which chip the bundle is."""
    bundle.recheck(component)
    try:
        return engine.load(bundle.graph(component), threads, lean)
    except BackendError as error:
        if not bundle.device:
            raise
        raise BackendError(f"{error}; this bundle is for {bundle.device}") from error
