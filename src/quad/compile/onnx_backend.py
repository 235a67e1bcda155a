"""Targets whose engine reads ONNX: the placed graph is what ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from quad.compile.artifact import Artifact, OnnxArtifact
from quad.compile.backend import Backend, BackendRequest, CompileContext, OutputDirectory
from quad.compile.passes import Observer
from quad.compile.placement.qdq import place_float, place_qdq
from quad.core.picture_size import component_of
from quad.core.precision import FLOAT


@dataclass(frozen=True)
class OnnxBackend:
    """Q and DQ around what the target computes in integers, see `Backend`."""

    needs_calls: bool = False
    requires: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[OutputDirectory, ...] = ()

    def check(self) -> None:
        """There is no option."""

    def require(self, model: Path) -> None:
        """There is no compiler to miss."""

    @contextmanager
    def writing(self) -> Iterator[Backend]:
        """Nothing is written beside the bundle."""
        yield self

    def artifact(self, model: ir.Model, graph: str, context: CompileContext, observer: Observer) -> Artifact:
        """The graph with this profile's Q and DQ, or without its Sites where it stays float."""
        target, profile, component = context.target, context.profile, component_of(graph)
        with context.clock("place"):
            if profile.mode == FLOAT:
                placed = place_float(model, target.passes, observer)
            else:
                slots = context.slots.of(component)
                placed = place_qdq(model, profile.component(component), slots, target.for_profile(profile), observer)
        return OnnxArtifact(model=placed.model, placement=placed.placement)


def open_backend(request: BackendRequest) -> OnnxBackend:
    """The same for all of these targets."""
    return OnnxBackend()
