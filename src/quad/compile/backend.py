"""The seam to a target's vendor: what turns one float graph with Sites into the files that the target runs.

A target's table names its backend; the module behind the name is imported when a build opens it. A new one is a row of `BACKENDS`, a
module with `open_backend(request) -> Backend`, and a table in `quad/compile/targets` that names it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from quad.compile.artifact import Artifact
from quad.compile.passes import Observer
from quad.compile.targets import Target
from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.errors import UsageError, mismatch
from quad.core.ports import Sinusoid
from quad.core.profile import Profile
from quad.core.progress import StageClock
from quad.core.slots import UNET, SlotTable

# Backend name -> module with `open_backend(request) -> Backend`. Opening one imports no vendor's package: `require` and `artifact` do.
BACKENDS = {"onnx": "quad.compile.onnx_backend", "litert": "quad.compile.litert.backend", "qnn": "quad.compile.qnn.backend"}


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that a build replaces as a whole.

    Args:
        option: what names it on the command line.
        marker: a file by which a build knows a directory of its own.
    """

    option: str
    path: Path
    marker: str


@dataclass(frozen=True)
class BackendRequest:
    """A build's request to its target's backend.

    Args:
        output: the bundle's directory; a backend may write beside it.
        options: options that no other target reads, as far as they were given: `soc`, `encodings`, ...
    """

    target: Target
    output: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompileContext:
    """Everything that all components of one build share.

    Args:
        slots: of all components, with the element type of the graph's inputs.
        scratch: a directory for binaries until they are in the bundle.
        calls: of the float networks, where the backend needs them.
        sinusoid: of the timestep's embedding.
        group_of: adapter -> number of its group, counted from 0; the first where it is not there.
    """

    target: Target
    profile: Profile
    slots: SlotTable
    clock: StageClock
    scratch: Path
    calls: Sequence[ComponentCall] = ()
    sinusoid: Sinusoid = field(default_factory=lambda: Sinusoid(channels=2))
    group_of: Mapping[str, int] = field(default_factory=dict)

    def of_group(self, group: int) -> CompileContext:
        """The same with the profile of one group of adapters, counted from 0, and of the U-Net's calls those that may run in its graph: the
        base's, its members', and those of narrower groups, which sums bring. A backend may take ranges of what it adds from them."""

        def counts(call: ComponentCall) -> bool:
            return call.component != UNET or call.source == BASE_SOURCE or self.group_of.get(call.source, 0) <= group

        return replace(self, profile=self.profile.of_group(group), calls=tuple(filter(counts, self.calls)))


class Backend(Protocol):
    """A vendor's compiler, with the options of one build.

    A Protocol because vendors share no class: only these members are relied on.
    """

    @property
    def needs_calls(self) -> bool:
        """Whether calls of the float networks are read, at the bundle's own sizes, beside the profile."""
        ...

    @property
    def requires(self) -> Mapping[str, str]:
        """Requirements on a device as the bundle's manifest states them; empty where any will do."""
        ...

    @property
    def directories(self) -> tuple[OutputDirectory, ...]:
        """Directories that are written beside the bundle."""
        ...

    def check(self) -> None:
        """Refuse option values before anything is loaded.

        Raises:
            UsageError: an option has a value that means nothing to this vendor.
        """
        ...

    def require(self, model: Path) -> None:
        """Refuse a model directory, or a machine, before minutes are spent on what could not be compiled.

        Raises:
            UnsupportedError: the model is of a kind that cannot be compiled. BackendError: the vendor's compiler is missing.
        """
        ...

    def writing(self) -> AbstractContextManager[Backend]:
        """The backend to compile with while the block runs; `directories` get their names when it ends well.

        Raises:
            InputError: a directory holds something else. BackendError: the disk is full or the place cannot be written to.
        """
        ...

    def artifact(self, model: ir.Model, graph: str, context: CompileContext, observer: Observer) -> Artifact:
        """Place and, where the vendor has a compiler, compile one component and prove the result against the placed graph.

        Args:
            model: float, with Sites, after the target's passes before placement; may be changed in place.
            graph: its name, the component's with the size where that is not the bundle's first.
            observer: sees the graph after each pass.

        Raises:
            UnsupportedError: the target cannot run the graph whole. BackendError: the compiler is missing, or its result is wrong.
        """
        ...


def open_backend(request: BackendRequest) -> Backend:
    """The backend that the target's table names.

    Raises:
        UsageError: there is none of that name.
    """
    name = request.target.backend
    if name not in BACKENDS:
        raise UsageError(mismatch(f"backend of target {request.target.name}", " | ".join(BACKENDS), name, "choose one of these"))
    backend: Backend = importlib.import_module(BACKENDS[name]).open_backend(request)
    return backend
