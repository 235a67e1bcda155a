"""LiteRT behind the seam: one `.tflite` a component, its encodings audited in the file, its numbers proved on LiteRT's own kernels."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.agreement import limit_of
from quad.compile.artifact import TFLITE_FILE, Artifact, FileArtifact
from quad.compile.backend import Backend, BackendRequest, CompileContext, OutputDirectory
from quad.compile.litert.aot.chips import Chip, chips_named
from quad.compile.litert.aot.compile import ChipResult, compile_for_chips, require_aot
from quad.compile.litert.float_graph import place_weights
from quad.compile.passes import Observer
from quad.compile.placement.integer_graph import (
    IntegerGraph,
    fitting,
    host_inputs,
    integer_feeds,
    lower_layers,
    place_integers,
    with_sinusoid,
)
from quad.core.chips import CPU, RUNS_ON_CPU, soc_names
from quad.core.component_call import ComponentCall, of_component
from quad.core.digests import canonical_json, digest
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, UnsupportedError, mismatch
from quad.core.picture_size import component_of
from quad.core.ports import PORTS_FILE
from quad.core.precision import FLOAT
from quad.core.storage.files import write_bytes
from quad.model.base.family import require_unet

PACKAGE = "ai_edge_litert"
AUDIT_FILE = "audit.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LitertBackend:
    """Graphs that LiteRT reads as they are, and beside them those of chips, see `Backend`.

    Args:
        soc_names: the chips as they were asked for.
    """

    soc_names: tuple[str, ...] = ()
    needs_calls: bool = True
    requires: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[OutputDirectory, ...] = ()

    @property
    def chips(self) -> tuple[Chip, ...]:
        """The chips.

        Raises:
            UsageError: no such chip.
        """
        return chips_named(self.soc_names)

    def check(self) -> None:
        """See `Backend.check`: the chips."""
        chips_named(self.soc_names)

    def require(self, model: Path) -> None:
        """See `Backend.require`: a U-Net, and the package that has the schema and the interpreter."""
        require_unet(model)
        if importlib.util.find_spec(PACKAGE) is None:
            raise BackendError(mismatch("target litert", f"the package {PACKAGE}", "none", "install it: pip install 'quad[litert]'"))
        require_aot(self.chips)

    @contextmanager
    def writing(self) -> Iterator[Backend]:
        """Nothing is written beside the bundle."""
        yield self

    def artifact(self, model: ir.Model, graph: str, context: CompileContext, observer: Observer) -> Artifact:
        """See `Backend.artifact`: the placed graph as a file, audited and proved."""
        from quad.compile.litert.audit import audit  # these import the package, an extra
        from quad.compile.litert.flatbuffer import serialize
        from quad.compile.litert.rules import lower as lower_to_tflite

        component = component_of(graph)
        calls = host_inputs(of_component(context.calls, component), context.sinusoid)
        profile = context.profile.component(component)
        with context.clock("place"):
            placed = _placed(model, calls, context, component, observer)
        with context.clock("compile"):
            lowered = lower_to_tflite(placed.model)
            content = serialize(lowered)
            audited = audit(content, placed.model.graph, profile)
        with context.clock("emulate"):
            feeds = _feeds(placed, calls, context, profile)
            agreement_db = _prove(graph, content, placed, feeds, context)
        folder = context.scratch / graph
        folder.mkdir(parents=True)
        write_bytes(folder / TFLITE_FILE, content)
        write_bytes(folder / PORTS_FILE, canonical_json(placed.ports))
        write_bytes(folder / AUDIT_FILE, canonical_json(audited))
        worst = min(agreement_db.values(), default=float("inf"))
        _log.info("%s for LiteRT: %d tensors audited, %.1f dB against the placed graph", graph, audited.tensors, worst)
        nodes = len(lowered.operators)
        chips = {CPU: RUNS_ON_CPU}
        for result in self._compiled(folder, feeds, context):
            chips[result.chip] = result.state
            agreement_db |= {f"{source} on {result.chip}": db for source, db in result.agreement_db.items()}
            _log.info("%s for %s: %s %s", graph, result.chip, result.state, result.note)
        placement = {"nodes": nodes, "on_target": nodes, "on_cpu": 0, "partitions": 1}
        identity = digest([sha256(content).hexdigest(), msgspec.to_builtins(placed.ports)])
        return FileArtifact(source=folder, placement=placement, agreement_db=agreement_db, chips=chips, identity=identity)

    def _compiled(self, folder: Path, feeds: Mapping[str, Mapping[str, NDArray[Any]]], context: CompileContext) -> tuple[ChipResult, ...]:
        """The file for every chip, and what is known of each."""
        if self.chips and context.profile.mode == FLOAT:
            raise UnsupportedError(mismatch("--soc", "a precision of integers", "one of floats", "choose --precision w8a16, or no --soc"))
        with context.clock("compile"):
            return compile_for_chips(folder / TFLITE_FILE, self.chips, feeds, folder)


def _placed(model: ir.Model, calls: Sequence[ComponentCall], context: CompileContext, component: str, observer: Observer) -> IntegerGraph:
    """Integers on every edge; where the precision is one of floats, weights alone or none."""
    profile = context.profile.component(component)
    if context.profile.mode == FLOAT:
        placed = place_weights(model, profile, context.target, observer)
    else:
        fit, target = fitting(model.graph, calls), context.target
        placed = place_integers(lower_layers(model, profile, target, observer), profile, fit, target, observer)
    return with_sinusoid(placed, context.sinusoid)


def _feeds(
    placed: IntegerGraph, calls: Sequence[ComponentCall], context: CompileContext, profile: Mapping[str, Encoding]
) -> dict[str, dict[str, NDArray[Any]]]:
    """The first call of every source as the graph takes it."""
    fit = fitting(placed.model.graph, calls)
    if context.profile.mode != FLOAT:
        return integer_feeds(placed, fit, profile)
    feeds: dict[str, dict[str, NDArray[Any]]] = {}
    for call in fit:
        feeds.setdefault(call.source, call.feed)
    return feeds


def _prove(
    graph: str, content: bytes, placed: IntegerGraph, feeds: Mapping[str, Mapping[str, NDArray[Any]]], context: CompileContext
) -> dict[str, float]:
    from quad.compile.litert.proof import DYNAMIC_AGREE_DB, FLOAT_AGREE_DB, Proof

    profile = context.profile.component(component_of(graph))
    output, floats = next(iter(placed.ports.outputs.values())), context.profile.mode == FLOAT
    float_limit_db = DYNAMIC_AGREE_DB if profile else FLOAT_AGREE_DB
    limit_db = float_limit_db if floats else limit_of(profile)
    proof = Proof(name=graph, content=content, placed=placed.model, output=output, delegates=floats, limit_db=limit_db)
    return proof.agreement(feeds)


def open_backend(request: BackendRequest) -> LitertBackend:
    """With the option `soc`: chips that have a file of their own beside the one that runs on any CPU."""
    return LitertBackend(soc_names=soc_names(request.options.get("soc")))
