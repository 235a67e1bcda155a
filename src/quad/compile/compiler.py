"""From networks and one profile to the files of each component, the way the target runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from torch import nn

from quad.compile.artifact import MODEL_FILE, Artifact, FileArtifact, OnnxArtifact
from quad.compile.export import GraphSpec, export_graph
from quad.compile.passes import Observer, passes_before, run_passes
from quad.compile.placement.qdq import place_float, place_qdq
from quad.compile.qnn.chips import DEFAULT_SOC, Soc, soc_named
from quad.compile.targets import Target
from quad.core.component_call import ComponentCall, of_component
from quad.core.ports import Sinusoid
from quad.core.precision import FLOAT
from quad.core.profile import Profile
from quad.core.progress import StageClock
from quad.core.slots import SlotTable


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """Everything that all components of one build share.

    Args:
        slots: of all components, with the element type of the graph's inputs.
        scratch: a directory for binaries until they are in the bundle.
        calls: of the float networks, where the target wants the range of every edge.
        encodings: a directory for what Qualcomm's own converter reads, see `quad.compile.qnn.aimet_files`.
        sinusoid: of the timestep's embedding.
    """

    target: Target
    profile: Profile
    slots: SlotTable
    clock: StageClock
    scratch: Path
    calls: Sequence[ComponentCall] = ()
    sinusoid: Sinusoid = field(default_factory=lambda: Sinusoid(channels=2))
    encodings: Path | None = None
    soc: Soc = field(default_factory=lambda: soc_named(DEFAULT_SOC))

    @property
    def requires(self) -> dict[str, str]:
        """The chip that the artifacts need, empty where any will do."""
        return {"soc": self.soc.name, "htp_arch": str(self.soc.arch)} if self.target.integers_only else {}

    def artifact(self, network: nn.Module, spec: GraphSpec, observer: Observer) -> Artifact:
        """Export, rewrite, place and, where the target has a compiler, compile one component.

        Raises:
            UnsupportedError: the network cannot be exported, or the target cannot run it whole. BackendError: the compiler is missing.
        """
        with self.clock("export"):
            model = export_graph(network, spec, observer)
        with self.clock("place"):
            model = run_passes(model, passes_before(self.target.passes), observer)
        finish = self._compiled if self.target.integers_only else self._placed
        return finish(model, spec.component, observer)

    def _placed(self, model: ir.Model, component: str, observer: Observer) -> Artifact:
        with self.clock("place"):
            if self.profile.mode == FLOAT:
                placed = place_float(model, self.target.passes, observer)
            else:
                slots = self.slots.of(component)
                placed = place_qdq(model, self.profile.component(component), slots, self.target.for_profile(self.profile), observer)
        return OnnxArtifact(placed.model, placed.placement)

    def _compiled(self, model: ir.Model, component: str, observer: Observer) -> Artifact:
        from quad.compile.qnn.aimet_files import write_encodings, write_float
        from quad.compile.qnn.emulate import check_agreement, limit_of  # imports a vendor's package, an extra
        from quad.compile.qnn.htp import compile_htp, host_inputs, integer_feeds, lower, place_htp, with_sinusoid

        calls = host_inputs(of_component(self.calls, component), self.sinusoid)
        with self.clock("place"):
            model = lower(model, self.profile.component(component), observer)
            if self.encodings is not None:
                write_float(model, self.encodings)
            graph = place_htp(model, self.profile.component(component), calls, self.target, observer)
            graph = with_sinusoid(graph, self.sinusoid)
            if self.encodings is not None:
                write_encodings(component, graph.edges, graph.constants, self.encodings)
        folder = self.scratch / component
        with self.clock("compile"):
            placement = compile_htp(graph, folder, self.soc)
        with self.clock("emulate"):
            encodings = self.profile.component(component)
            agreement_db = check_agreement(
                graph, folder / MODEL_FILE, self.soc, integer_feeds(graph, calls, encodings), limit_of(encodings)
            )
            return FileArtifact(folder, placement, agreement_db)


def emulation_json(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, float]]:
    """Component -> what it was fed with -> SQNR in dB of the compiled graph against the placed one."""
    return {name: dict(artifact.agreement_db) for name, artifact in artifacts.items() if artifact.agreement_db}


def placement_json(artifacts: Mapping[str, Artifact]) -> dict[str, object]:
    """The U-Net's placement, and that of every component; empty where nothing was made here."""
    if not artifacts:
        return {}
    return {**artifacts["unet"].placement, "components": {name: artifact.placement for name, artifact in artifacts.items()}}
