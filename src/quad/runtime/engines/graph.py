"""The memory plan: which graphs of a pipeline stay in memory, and which are there only while they run.

`keep-all` holds all four. `balanced` holds the U-Net, which takes longest to load and runs longest; the others come and go around it.
`minimal` holds none: text encoder, VAE encoder, U-Net and VAE decoder come and go one after the other, each loaded for memory rather than
time. Under one plan a picture is always the same, bit for bit; `keep-all` and `balanced` agree, and `minimal` adds floats in another order
where an engine would have widened a small graph's weights (a 1e-5 of an output).

Of a bundle with several picture sizes, or several groups of adapters, the graphs of the first are loaded at once and those of another when
a picture of that size or group is made. `keep-all` then keeps them too; `balanced` holds one U-Net, that of the latest picture.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock, RLock
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from quad.core.errors import BackendError, UsageError, VerificationError, mismatch
from quad.core.extra_graphs import SHALLOW_UNET, TINY_DECODER
from quad.core.memory import release_memory
from quad.core.picture_size import PictureSize, component_of, graph_name
from quad.core.slots import UNET
from quad.core.storage.reading import reading_from
from quad.runtime.adapters.buffers import AdapterMix, Buffers
from quad.runtime.bundle import COMPONENTS, Bundle, sized_components
from quad.runtime.engines.engine import Arrays, Engine, PreparedInputs, Shape, SwitchSession
from quad.runtime.engines.onnx_inputs import graph_inputs

_LOG = logging.getLogger(__name__)

# Memory plan -> the components that stay.
KEEP_ALL, BALANCED = "keep-all", "balanced"
_IN_PLACE_OF = {SHALLOW_UNET: UNET, TINY_DECODER: "vae_decoder"}  # loaded when they are first asked for, and kept as these are
PLANS: Mapping[str, tuple[str, ...]] = {KEEP_ALL: COMPONENTS, BALANCED: (UNET,), "minimal": ()}
_BINDINGS = count(1)
Place = tuple[str, PictureSize | None, int]  # component, further size, and group of adapters counted from 0
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
            if inputs.get(name) != shape:
                where = f"graph {self.component}, input {name}"
                raise VerificationError(mismatch(where, shape, inputs.get(name), "build the bundle again"))


class FairLock:
    """One at a time, first come first served: a thread that asks again and again cannot keep another one waiting, as it can with `Lock`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._locked = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._locked:
                self._locked = True
                return
            place = Lock()
            place.acquire()
            self._waiting.append(place)
        try:
            place.acquire()
        except BaseException:  # an interrupt: who does not enter must not keep the turn
            self._give_up(place)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # handed over: it stays taken
            else:
                self._locked = False

    def _give_up(self, place: Lock) -> None:
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                return
        self.__exit__(None, None, None)  # it was given meanwhile


class Graph:
    """One component's graph for one size of pictures: a `Runnable` that is loaded when needed and knows which adapters it is bound to.

    Calls from several threads take turns; who needs several of them to belong together holds `loaded()` around them.

    Args:
        mix: the adapters it is bound to, or will be once it is loaded; held until others are bound, so that a store knows their buffers
            to be in use. None before the first.
        bound: number of the latest binding among those of all graphs; 0 before the first.
    """

    def __init__(self, load: Callable[[], SwitchSession], slots: Slots, *, resident: bool, budget: FairLock) -> None:
        """Args:
        load: called each time that the graph is needed and not there.
        slots: what its bundle says of its slot inputs.
        resident: once loaded, it stays.
        budget: of threads, shared by all graphs: who runs uses all of it.
        """
        self.mix: AdapterMix | None = None
        self.bound = 0
        self._load, self._slots, self._resident, self._budget = load, slots, resident, budget
        self._lock = RLock()
        self._users = 0
        self._rivals: tuple[Graph, ...] = ()
        self._session: SwitchSession | None = None
        self._shapes: Mapping[str, Shape] | None = None

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """See `Runnable.inputs`; remembered, so that the graph is loaded for it once at most."""
        if self._shapes is None:
            with self.loaded():
                pass
        assert self._shapes is not None
        return self._shapes

    def validate(self, model_file: Path) -> None:
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
        with self._lock:
            self._users += 1
            try:
                if self._session is None:
                    self._open()
                yield
            finally:
                self._users -= 1
                if not self._users and not self._resident:
                    self._session = None
                    release_memory()
                    _LOG.debug("graph %s: unloaded", self._slots.component)

    def alone_among(self, graphs: Sequence[Graph]) -> None:
        """When this one is loaded, those of them that nobody uses at that moment go."""
        self._rivals = tuple(graph for graph in graphs if graph is not self)

    def give_way(self) -> None:
        """Go, unless somebody uses it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._users and self._session is not None:
                self._session = None
                release_memory()
        finally:
            self._lock.release()

    def bind(self, mix: AdapterMix) -> None:
        """Make these adapters the slot inputs, of which there may be none, now and whenever the graph is loaded again.

        Raises:
            BackendError: their buffers do not fit; what was bound stays bound.
        """
        with self._lock:
            if self._session is not None and not (self.mix is not None and self.mix.buffers is mix.buffers):
                bind_buffers(self._session, mix.buffers, self._slots.shapes)
            self.mix, self.bound = mix, next(_BINDINGS)

    def lay_out(self, mix: AdapterMix) -> None:
        """Make these adapters ready to be bound, where the graph is in memory; another thread may run it meanwhile."""
        session = self._session
        if session is not None:
            with suppress(BackendError):  # told when they are bound
                session.lay_out(_prepared(session, mix.buffers, tuple(self._slots.shapes)))

    def run(self, inputs: Arrays) -> NDArray[Any]:
        """See `Runnable.run`."""
        with self.loaded(), self._budget:
            assert self._session is not None
            return self._session.run(inputs)

    def run_all(self, inputs: Arrays) -> list[NDArray[Any]]:
        """As `run`, every output of the graph."""
        with self.loaded(), self._budget:
            assert self._session is not None
            return self._session.run_all(inputs)

    def _open(self) -> None:
        for rival in self._rivals:
            rival.give_way()
        session = self._load()
        self._slots.check(session.inputs)
        self._shapes = dict(session.inputs)
        if self.mix is not None:
            bind_buffers(session, self.mix.buffers, self._slots.shapes)
        self._session = session
        _LOG.debug("graph %s: loaded", self._slots.component)


def bind_buffers(session: SwitchSession, buffers: Buffers, names: Iterable[str]) -> None:
    """Bind the inputs of these names to a session; what it has checked and wrapped once is bound again as it is.

    Args:
        buffers: graph input name -> array; not to be written to any more, and to be held as long as they are bound.

    Raises:
        BackendError: they do not fit; what was bound stays bound.
    """
    session.bind(_prepared(session, buffers, tuple(names)))


def _prepared(session: SwitchSession, buffers: Buffers, names: Collection[str]) -> PreparedInputs:
    """Buffers as a session has checked and wrapped them; of those that share others' arrays only what is theirs is wrapped anew."""
    prepared = buffers.prepared.get(session)
    if prepared is None:
        source = buffers.source
        if source is None:
            prepared = session.prepare({name: buffers[name] for name in names})
        else:
            own = session.prepare({name: buffers[name] for name in names if buffers[name] is not source[name]})
            prepared = _prepared(session, source, names).updated(own)
        buffers.prepared[session] = prepared
    return prepared


def open_graphs(bundle: Bundle, engine: Engine, threads: int, memory: str, denoiser: Engine | None = None) -> dict[str, Graph]:
    """The graphs of a bundle by `graph_name`, under a memory plan; those of its first size that stay are loaded now.

    Buffers are made of a slot table's numbers only after the graphs have borne it out, each by its session or, unloaded, by its file.

    Args:
        denoiser: runs the U-Net, where that is not `engine`.

    Raises:
        UsageError: no plan has that name.
        BackendError: a graph cannot be loaded. VerificationError: one lacks a slot input, or has it in another shape.
    """
    if memory not in PLANS:
        raise UsageError(mismatch("memory", f"one of {', '.join(PLANS)}", repr(memory), "choose one of these"))
    slots, resident, budget = bundle.slots, PLANS[memory], FairLock()
    if odd := sorted(set(slots.components) - set(COMPONENTS)):
        raise VerificationError(mismatch("slots", f"slots of {', '.join(COMPONENTS)}", odd[0], "build the bundle again"))
    graphs = {}
    for place in _places(bundle):
        component, size, group = place
        plain = _IN_PLACE_OF.get(component, component)
        runner = denoiser if denoiser is not None and plain == UNET else engine
        load = partial(_load, runner, bundle, place, threads=threads, lean=memory == LEAN)
        shapes = slots.of(component).input_shapes() if component != SHALLOW_UNET else _shallow_shapes(bundle)
        graph = Graph(load, Slots(component, shapes), resident=plain in resident, budget=budget)
        graphs[graph_name(component, size, group)] = graph
        if component in resident and size is None and not group:
            with graph.loaded():
                pass
        elif component == UNET or shapes:
            graph.validate(bundle.graph(component, size, group))
    if memory != KEEP_ALL:
        unets = [graph for name, graph in graphs.items() if component_of(name) == UNET]
        for unet in unets:
            unet.alone_among(unets)
    _LOG.info("memory plan %s: %s stay in memory", memory, ", ".join(resident) or "no graphs")
    return graphs


def _places(bundle: Bundle) -> list[Place]:
    """Of every graph, those of the first size and group first."""
    further = bundle.manifest.picture_sizes[1:]
    extra = [name for name in _IN_PLACE_OF if name in bundle.manifest.components]
    sized = sized_components(bundle.manifest)
    places = [(name, None, 0) for name in (*COMPONENTS, *extra)] + [(name, size, 0) for size in further for name in sized]
    return places + [(UNET, size, group) for group in range(1, bundle.profile.group_count) for size in (None, *further)]


def _shallow_shapes(bundle: Bundle) -> dict[str, Shape]:
    """The slot inputs of the shallow U-Net: those of the U-Net that it has too.

    Raises:
        VerificationError: its file is no graph.
    """
    file = bundle.graph(SHALLOW_UNET)
    inputs = graph_inputs(file)
    if inputs is None:
        raise VerificationError(mismatch(str(file), "an ONNX graph", "something else", "build the bundle again"))
    return {name: shape for name, shape in bundle.slots.of(UNET).input_shapes().items() if name in inputs}


def _load(engine: Engine, bundle: Bundle, place: Place, *, threads: int, lean: bool) -> SwitchSession:
    """A graph of a bundle, as it was when that was opened; where it cannot be loaded, the message says for which chip the bundle is."""
    try:
        with reading_from(bundle.root), bundle.graph_to_load(*place) as file:
            return engine.load(file, threads, lean)
    except BackendError as error:
        if not bundle.device:
            raise
        raise BackendError(f"{error}; this bundle is for {bundle.device}") from error
