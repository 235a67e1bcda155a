"""Qualcomm behind the seam: integers on every edge, a binary for one chip and its proof in emulation, encodings for the own converter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from quad.compile.agreement import limit_of
from quad.compile.artifact import MODEL_FILE, Artifact, FileArtifact
from quad.compile.backend import Backend, BackendRequest, CompileContext, OutputDirectory
from quad.compile.passes import Observer
from quad.compile.placement.integer_graph import fitting, host_inputs, integer_feeds, lower_layers, place_integers, with_sinusoid
from quad.compile.qnn.aimet_files import ENCODINGS_FILE, ENCODINGS_OPTION, write_encodings, write_float
from quad.compile.qnn.chips import Soc, generation_of, only_soc, soc_named
from quad.compile.qnn.htp import compile_htp, require_compiler
from quad.core.component_call import of_component
from quad.core.picture_size import component_of
from quad.core.storage.directories import new_directory
from quad.core.storage.files import real_path
from quad.model.base.family import require_unet

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QnnBackend:
    """The HTP of one chip, see `Backend`.

    Args:
        soc_name: the chip as it was asked for.
        encodings: where files for the vendor's converter go.
        stage: of `writing`: where they lie until all are there; None writes none.
    """

    soc_name: str
    encodings: Path
    stage: Path | None = None
    needs_calls: bool = True

    @property
    def soc(self) -> Soc:
        """The chip.

        Raises:
            UsageError: no such chip.
        """
        return soc_named(self.soc_name)

    @property
    def requires(self) -> Mapping[str, str]:
        """A binary runs on one version of the HTP."""
        return {"soc": self.soc.name, "htp_arch": str(self.soc.arch)}

    @property
    def directories(self) -> tuple[OutputDirectory, ...]:
        """Float graphs and encodings for the vendor's converter."""
        return (OutputDirectory(ENCODINGS_OPTION, self.encodings, ENCODINGS_FILE),)

    def check(self) -> None:
        """See `Backend.check`: the chip."""
        soc_named(self.soc_name)

    def require(self, model: Path) -> None:
        """See `Backend.require`: a U-Net, and the compiler's package."""
        require_unet(model)
        require_compiler()

    @contextmanager
    def writing(self) -> Iterator[Backend]:
        """See `Backend.writing`."""
        with new_directory(self.encodings, ENCODINGS_FILE, ENCODINGS_OPTION) as stage:
            yield replace(self, stage=stage)

    def artifact(self, model: ir.Model, graph: str, context: CompileContext, observer: Observer) -> Artifact:
        """See `Backend.artifact`: an encoding for every edge, the binary, and its agreement with the CPU in emulation."""
        from quad.compile.qnn.emulate import check_agreement  # imports a vendor's package, an extra

        component = component_of(graph)
        profile = context.profile.component(component)
        calls = fitting(model.graph, host_inputs(of_component(context.calls, component), context.sinusoid))
        with context.clock("place"):
            generation = generation_of(self.soc)
            target = generation.table(context.target)
            model = lower_layers(model, profile, target, observer, generation.passes)
            if self.stage is not None:
                write_float(model, graph, self.stage)
            placed = with_sinusoid(place_integers(model, profile, calls, target, observer), context.sinusoid)
            if self.stage is not None:
                write_encodings(graph, placed.edges, placed.constants, self.stage)
        folder = context.scratch / graph
        with context.clock("compile"):
            compiled = compile_htp(placed, folder, self.soc)
        with context.clock("emulate"):
            agreement_db = check_agreement(placed, folder / MODEL_FILE, self.soc, integer_feeds(placed, calls, profile), limit_of(profile))
        worst = min(agreement_db.values(), default=float("inf"))
        _log.info("%s compiled for %s: %d operators, %.1f dB in emulation", graph, self.soc.name, compiled.placement["nodes"], worst)
        return FileArtifact(source=folder, placement=compiled.placement, agreement_db=agreement_db, identity=compiled.identity)


def open_backend(request: BackendRequest) -> QnnBackend:
    """With the options `soc` (the newest chip of one generation where not given) and `encodings` (`<output>.qairt`)."""
    encodings = request.options.get("encodings") or Path(f"{real_path(request.output)}.qairt")
    return QnnBackend(soc_name=only_soc(request.options.get("soc")), encodings=encodings)
