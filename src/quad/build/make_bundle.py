"""The last stages of a build: a graph of each network, compiled as the target's backend does, and the bundle they are in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import nn

from quad.build.admission_data import Corrections, admission_files, chosen_calls, few_probes
from quad.build.bundle_trial import BundleTrial
from quad.build.calls.call_recorder import corrected_calls
from quad.build.calls.float_teacher import FloatTeacher
from quad.build.choose_profile import ProfileStage
from quad.build.embeddings import embedding_files
from quad.build.extra_graphs.shallow import check_shallow, shallow_notes
from quad.build.open_and_slot import SlottedModel
from quad.build.request import BuildRequest
from quad.build.resume import stages as resumable
from quad.build.resume.cache import BuildCache, clear_cache
from quad.build.smoke import SmokeFiles, SmokeResult, of_groups, run_smoke, smoke_cases
from quad.build.write_bundle import BundleParts, binary_notes, write_bundle
from quad.compile.artifact import Artifact
from quad.compile.backend import Backend, CompileContext
from quad.compile.compiler import Compiler, emulation_json, placement_json
from quad.compile.dump import dumping, observer_of
from quad.compile.export import GraphSpec
from quad.compile.graph_specs import sinusoid_of
from quad.compile.passes import Observer
from quad.compile.targets import load_target
from quad.core.errors import BackendError
from quad.core.manifest import BASE_CORRECTION_FILE, PROBES_FILE, BundleManifest
from quad.core.memory import release_memory
from quad.core.picture_size import graph_name
from quad.core.precision import FLOATS
from quad.core.progress import StageClock
from quad.core.slots import UNET
from quad.core.storage.files import scratch_directory
from quad.quantize.processes.dealt import Codec, Packed
from quad.runtime.adapters.packed import PackedAdapter
from quad.runtime.conformance import record_vectors

META = "meta"  # where torch holds shapes without numbers
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildStages:
    """The results of the stages before these.

    Args:
        adapters: as they ship.
        stored: files for adapters to come.
        correction: tensors of the base's correction, empty for none.
    """

    model: SlottedModel
    profile: ProfileStage
    adapters: tuple[PackedAdapter, ...]
    stored: Mapping[str, bytes]
    correction: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class WrittenBundle:
    """The bundle's manifest; of several processes, only the one that made it knows the rest.

    Args:
        smoke: component -> case -> relative error of its graph.
        placement, emulation: see `BuildResult`.
        notes: what is worth knowing of its files, a line each.
    """

    manifest: BundleManifest
    smoke: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    placement: Mapping[str, Any] = field(default_factory=dict)
    emulation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _of_manifest(packed: Packed) -> WrittenBundle:
    return WrittenBundle(manifest=msgspec.convert(packed[0], BundleManifest))


# Other processes get the manifest alone: the bundle's files need not be where they are.
WRITTEN = Codec[WrittenBundle](lambda bundle: (msgspec.to_builtins(bundle.manifest), {}), _of_manifest)


def make_bundle(request: BuildRequest, backend: Backend, stages: BuildStages, clock: StageClock) -> WrittenBundle:
    """The stages export to write.

    Raises:
        UnsupportedError: the target cannot run a network. BackendError: a compiler is missing, the disk is full, or a graph does not run as
        its network does.
    """
    model = stages.model
    files = {**stages.stored, **embedding_files(model.adapters, model.base)}
    if stages.correction:
        files[BASE_CORRECTION_FILE] = save(dict(stages.correction))
    with backend.writing() as writer, scratch_directory() as scratch:
        context = CompileContext(
            target=load_target(request.target),
            profile=stages.profile.profile,
            slots=stages.profile.slots,
            clock=clock,
            scratch=scratch,
            calls=corrected_calls(stages.profile.calls, stages.correction, stages.profile.slots, stages.profile.profile),
            group_of=stages.profile.group_of,
            sinusoid=sinusoid_of(model.base),
        )
        parts = BundleParts(
            name=request.name or f"{request.target}-{request.resolved_precision}-{context.profile.digest[:8]}",
            base=model.base,
            target=context.target.name,
            precision=request.resolved_precision,
            engines=context.target.engines,
            slots=context.slots,
            profile=context.profile,
            artifacts=_artifacts(request, Compiler(writer, context), model),
            adapters=stages.adapters,
            tasks=model.base.tasks,
            requires=backend.requires,
            reuse=request.reuse,
            stored=files,
        )
        with clock("write"):
            return _write(request, parts, stages)


def stored_files(request: BuildRequest, model: SlottedModel, teacher: FloatTeacher) -> dict[str, bytes]:
    """For adapters to come; without an adapter the bundle has no slot for any."""
    if not model.adapters:
        return {}
    grid = model.base.latent.grid(model.base.picture_size)
    if request.resolved_precision in FLOATS:
        probes = few_probes(model.base, teacher.networks, model.table, model.adapters, model.samples)
        return admission_files(chosen_calls(probes, grid), None)
    corrections = Corrections.since(teacher.layers, model.networks[UNET], model.mixed_precision.folded)
    return admission_files(chosen_calls(teacher.probes, grid), corrections)


def _artifacts(request: BuildRequest, compiler: Compiler, model: SlottedModel) -> dict[str, Artifact]:
    """Each graph's files by its name, made or taken from an earlier run."""
    # What a build writes beside its bundle is written by the run that makes the graphs.
    cache = model.cache if request.dump_passes is None and not compiler.backend.directories else BuildCache(None)
    with dumping(request.dump_passes) as dump:
        artifacts: dict[str, Artifact] = {}
        components = [spec.component for spec in model.specs.values()]
        for number, (name, spec) in enumerate(model.specs.items()):
            network = model.networks[spec.component]
            graphs = _GroupGraphs(compiler=compiler, network=network, spec=spec, observer=observer_of(dump, name))
            artifacts[name] = resumable.compiled(cache, name, graphs.first)
            for group in graphs.further:
                named = graph_name(name, None, group)
                artifacts[named] = resumable.compiled(cache, named, partial(graphs.of_group, group, observer_of(dump, named)))
            del graphs
            if spec.component not in components[number + 1 :] and cache.folder is not None:  # its graphs are on disk
                network.to(META)
                release_memory()
        return artifacts


@dataclass(frozen=True, kw_only=True)
class _GroupGraphs:
    """One graph for every group of adapters, exported once, when it is first asked for."""

    compiler: Compiler
    network: nn.Module
    spec: GraphSpec
    observer: Observer

    @property
    def further(self) -> range:
        """Numbers of the groups behind the first that have a graph of their own: of the U-Net all."""
        return range(1, self.compiler.context.profile.group_count if self.spec.component == UNET else 1)

    @cached_property
    def _exported(self) -> ir.Model:
        return self.compiler.exported(self.network, self.spec, self.observer)

    def first(self) -> Artifact:
        """The files of the first group's graph."""
        return self.of_group(0, self.observer)

    def of_group(self, group: int, observer: Observer) -> Artifact:
        """The files of one group's graph."""
        model = self._exported.clone() if self.further else self._exported
        return self.compiler.of_group(group).placed(model, self.spec, observer)


def _write(request: BuildRequest, parts: BundleParts, stages: BuildStages) -> WrittenBundle:
    """The bundle on disk, once its graphs have run and come near the float networks; and how near."""
    model = stages.model
    errors: dict[str, Mapping[str, float]] = {}
    groups = {adapter.name: adapter.group for adapter in parts.adapters}
    references = of_groups(model.references, groups, parts.profile.group_count)
    cases = smoke_cases(references, {adapter.name: adapter.tensors for adapter in parts.adapters}, parts.slots)

    trial = BundleTrial(parts)

    def check(stage: Path, graphs: Mapping[str, Path]) -> SmokeResult:
        try:
            files = SmokeFiles(graphs=graphs, probes=stage / PROBES_FILE, profile=parts.profile, correction=stages.correction)
            smoke = run_smoke(files, trial.engine(graphs), request.resolved_precision, cases, parts.slots, parts.adapters)
        except BackendError:
            clear_cache(request)  # graphs that answer wrongly are not to be taken up again
            raise
        errors.update(smoke.errors)
        return smoke

    def vectors(stage: Path) -> Mapping[str, bytes]:
        pipe, *beside = trial.pipelines(stage)
        if parts.reuse:
            check_shallow(pipe)
        files = record_vectors(pipe, model.samples, beside).files()
        trial.close()
        return files

    manifest = write_bundle(parts, request.output, check, vectors)
    _log.info("bundle %s: %s, %d adapters", parts.name, parts.target, len(parts.adapters))
    return WrittenBundle(
        manifest=manifest,
        smoke=errors,
        placement=placement_json(parts.artifacts),
        emulation=emulation_json(parts.artifacts),
        notes=(*binary_notes(manifest), *shallow_notes(manifest)),
    )
