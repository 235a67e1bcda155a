"""From networks and one profile to the files of each component, the way the target runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import onnx_ir as ir
from torch import nn

from quad.compile.artifact import Artifact
from quad.compile.backend import Backend, CompileContext
from quad.compile.export import GraphSpec, export_graph
from quad.compile.passes import Observer, passes_before, run_passes
from quad.core.errors import UnsupportedError, mismatch
from quad.core.picture_size import graph_name


@dataclass(frozen=True)
class Compiler:
    """From a network to its files, with what all components of one build share.

    Args:
        group: of adapters, counted from 0, that graphs are made for.
    """

    backend: Backend
    context: CompileContext
    group: int = 0

    def of_group(self, group: int) -> Compiler:
        """The same for the graphs of one group of adapters, counted from 0."""
        return replace(self, context=self.context.of_group(group), group=group)

    def exported(self, network: nn.Module, spec: GraphSpec, observer: Observer) -> ir.Model:
        """One component exported and rewritten, as it is for all groups of adapters.

        Raises:
            UnsupportedError: the network cannot be exported, or the target has no form for some operator of it.
        """
        clock = self.context.clock
        with clock("export"):
            model = export_graph(network, spec, observer)
        with clock("place"), self._rewriting(spec):
            return run_passes(model, passes_before(self.context.target.passes), observer)

    def artifact(self, network: nn.Module, spec: GraphSpec, observer: Observer) -> Artifact:
        """Export, rewrite, place and, where the target has a compiler, compile one component.

        Raises:
            UnsupportedError: as `exported` and `placed`. BackendError: the compiler is missing.
        """
        return self.placed(self.exported(network, spec, observer), spec, observer)

    def placed(self, model: ir.Model, spec: GraphSpec, observer: Observer) -> Artifact:
        """Place and, where the target has a compiler, compile one component.

        Args:
            model: of `exported` with the same spec; may be changed in place.

        Raises:
            UnsupportedError: the target cannot run it whole. BackendError: the compiler is missing.
        """
        with self._rewriting(spec):
            return self.backend.artifact(model, graph_name(spec.graph, None, self.group), self.context, observer)

    @contextmanager
    def _rewriting(self, spec: GraphSpec) -> Iterator[None]:
        """A pass that cannot rewrite the graph refuses it in one line; a broken promise of a pass stays what it is."""
        try:
            yield
        except ir.passes.PassError as error:
            expected = f"a graph that the passes of {self.context.target.name} can rewrite"
            raise UnsupportedError(mismatch(spec.graph, expected, str(error), "build for another target")) from error


def emulation_json(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, float]]:
    """Component -> what it was fed with -> SQNR in dB of the compiled graph against the placed one."""
    return {name: dict(artifact.agreement_db) for name, artifact in artifacts.items() if artifact.agreement_db}


def placement_json(artifacts: Mapping[str, Artifact]) -> dict[str, object]:
    """The U-Net's placement, and that of every component; empty where nothing was made here."""
    if not artifacts:
        return {}
    return {**artifacts["unet"].placement, "components": {name: artifact.placement for name, artifact in artifacts.items()}}
