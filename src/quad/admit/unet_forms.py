"""The bundle's U-Net in the forms that an admission runs: as its engine runs it, with its activations read, with them left as floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

from numpy.typing import NDArray

from quad.admit.sites import ObservedGraph, SiteUse, unrounded_outputs
from quad.core.component_call import Inputs
from quad.core.memory import release_memory
from quad.core.slots import UNET
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Session
from quad.runtime.golden_outputs import unet_buffers

# Of a graph: a call of a smaller one takes less time than loading it once more.
_WORTH_LOADING_TWICE_BYTES = 100_000_000
Adapter = Callable[[], Buffers]  # gives its buffers, padded


@final
class UnetForms:
    """These forms, of which one is in memory at a time.

    Several calls run at once. Each of them has one thread, so that what comes out does not depend on how many there are.
    """

    def __init__(self, bundle: Bundle, load: Callable[[], Session], at_once: int) -> None:
        """Args:
        load: loads the graph as its engine runs it.
        at_once: how many calls.
        """
        self._bundle, self._load, self._at_once = bundle, load, at_once
        part = bundle.manifest.components[UNET]
        size = sum(bundle.manifest.files[name].size_bytes for name in (part.file, *part.data_files))
        self._most_sessions = at_once if size >= _WORTH_LOADING_TWICE_BYTES else 1
        self._sessions: list[Session] = []
        self._observed: ObservedGraph | None = None

    @property
    def unread(self) -> str:
        """Why activations cannot be read; empty where they are."""
        return self._graph.unread

    def outputs(self, calls: Sequence[tuple[Adapter, Inputs]]) -> list[NDArray[Any]]:
        """Answers to calls, each with its adapter bound."""
        sessions = self._loaded(min(self._most_sessions, len(calls)))

        def answers(number: int) -> list[NDArray[Any]]:
            session, outputs = sessions[number], []
            for adapter, call in calls[number :: len(sessions)]:
                session.bind(unet_buffers(self._bundle, adapter()))
                outputs.append(session.run(call))
            return outputs

        with ThreadPoolExecutor(len(sessions)) as pool:
            dealt = list(pool.map(answers, range(len(sessions))))
        return [dealt[index % len(sessions)][index // len(sessions)] for index in range(len(calls))]

    def uses(self, buffers: Buffers, calls: Sequence[Inputs]) -> Mapping[str, SiteUse]:
        """Site -> how it uses its range over the calls."""
        return self._graph.uses(calls, unet_buffers(self._bundle, buffers), self._at_once)

    def unrounded(self, calls: Sequence[tuple[Adapter, Inputs]]) -> list[NDArray[Any]] | None:
        """Answers to calls with activations left as floats; None where they cannot be."""
        self._sessions.clear()
        self._observed = None
        release_memory()
        with self._bundle.graph_to_load(UNET) as file:
            bound = [(unet_buffers(self._bundle, adapter()), call) for adapter, call in calls]
            return unrounded_outputs(file, bound, self._at_once)

    def _loaded(self, count: int) -> list[Session]:
        if self._observed is not None:
            self._observed = None
            release_memory()
        while len(self._sessions) < count:
            self._sessions.append(self._load())
        return self._sessions[:count]

    @property
    def _graph(self) -> ObservedGraph:
        if self._observed is None:
            self._sessions.clear()
            release_memory()
            with self._bundle.graph_to_load(UNET) as file:
                self._observed = ObservedGraph(file)
        return self._observed
