"""The whole way from a model directory to a bundle directory, straight.

open -> lora -> slot -> solve -> equalize -> calibrate -> score -> unify -> align -> export -> place [-> compile -> emulate] -> write
(with a smoke run before the bundle gets its name)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from quad.build import resumable_stages as kept_pieces
from quad.build.admission_data import Corrections, chosen_calls, few_probes, stored_files
from quad.build.align_adapters import Aligner, keep_float
from quad.build.call_recorder import CallKeeper
from quad.build.choose_profile import Scoring
from quad.build.open_and_slot import Opened, open_all
from quad.build.processes import is_main, once
from quad.build.request import BuildRequest, BuildResult
from quad.build.resume import Kept, alone, forget
from quad.build.smoke import run_smoke, smoke_cases
from quad.build.write_bundle import BundleParts, PackedAdapter, rom_bytes, write_bundle
from quad.compile.artifact import Artifact
from quad.compile.backend import Backend, CompileContext
from quad.compile.compiler import Compiler, emulation_json, placement_json
from quad.compile.dump import dumping, observer_of
from quad.compile.graph_specs import sinusoid_of
from quad.compile.targets import Target, check_precision, load_target
from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.errors import BackendError, QuadError
from quad.core.manifest import BundleManifest, Golden
from quad.core.memory import peak_ram_bytes
from quad.core.padding import trim
from quad.core.precision import FLOAT
from quad.core.profile import Profile
from quad.core.progress import Progress, StageClock, silent, with_progress
from quad.core.slots import SlotTable
from quad.core.storage.files import require_replaceable, scratch_directory
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_inputs
from quad.quantize.correct.bias import apply_biases, corrected_biases
from quad.quantize.distill.distill import Alignment
from quad.quantize.encodings.integers import integer_slots
from quad.quantize.encodings.rules import MIXED_COMPONENT, Rule
from quad.quantize.observe.calibrate import CalibrationOptions, calibration_feeds, with_adapter
from quad.quantize.observe.observers import observe
from quad.quantize.observe.probes import ProbeOptions, Probes, record_probes
from quad.quantize.profile.divergence import MIN_VALUES
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.sensitivity import Sensitivity
from quad.runtime.bundle import open_bundle

__all__ = ["STAGES", "BuildRequest", "BuildResult", "build"]

STAGES = (
    "open", "lora", "slot", "solve", "equalize", "calibrate", "score", "unify", "align", "export", "place", "compile", "emulate", "write",
)  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """The bundle's manifest; of several processes, only the one that made it knows the rest."""

    manifest: BundleManifest
    smoke: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


def build(request: BuildRequest, progress: Progress = silent) -> BuildResult:
    """Build one bundle.

    Args:
        progress: called with each stage as it begins, and the share of stages done.

    Raises:
        InputError: model, adapters or samples are wrong. UsageError: an option is. UnsupportedError: a precision or layer is not for this
        target. CompatibilityError: adapters do not fit. BackendError: the disk is full, or the graph does not run as the network does.
    """
    start = time.perf_counter()
    target = load_target(request.target)
    check_precision(target, request.precision)
    request.check()
    backend = request.backend
    backend.require(request.model)
    for directory in request.directories:
        require_replaceable(directory.path, directory.marker, directory.option)
    clock = StageClock(STAGES, progress if is_main() else silent)
    with alone(request):
        try:
            return _build(request, target, backend, clock, start)
        except QuadError as error:
            # After a full disk, or a kill, the build goes on; other input is another run. One that ended while it was read, at a mistyped
            # name for instance, has touched no piece.
            if not isinstance(error, BackendError) and "slot" in clock.seconds:
                forget(request)
            raise


def _build(request: BuildRequest, target: Target, backend: Backend, clock: StageClock, start: float) -> BuildResult:
    opened = open_all(request, clock)
    floats = keep_float(opened.networks)
    probes = cache(lambda: _probes(opened, floats))
    profile, slots, shared, calls = _profile(request, opened, backend.needs_calls, clock, probes)
    with clock("align"):
        aligner = Aligner(opened.measured, floats, opened.networks["unet"], opened.table, opened.adapters, opened.samples, probes)
        packed, alignment = _pack(request, opened, aligner, profile, slots, clock.within("align"))

    def context(scratch: Path) -> CompileContext:
        return CompileContext(
            target=target, profile=profile, slots=slots, clock=clock, scratch=scratch, calls=calls, sinusoid=sinusoid_of(opened.base)
        )

    made = once(
        lambda: _make(request, opened, (backend, context), packed, _stored(request, opened, floats, probes)),
        lambda: _Made(open_bundle(request.output).manifest),
    )
    forget(request)
    clock.done()
    return BuildResult(
        request.output, made.manifest, time.perf_counter() - start, peak_ram_bytes(), _profile_json(profile, shared),
        placement_json(made.artifacts), clock.seconds, made.smoke, rom_bytes(made.manifest, packed),
        {name: found.to_json() for name, found in alignment.items()}, emulation_json(made.artifacts), tuple(opened.kept.resumed),
        {adapter.name: adapter.to_json() for adapter in opened.adapters},
    )  # fmt: skip


def _stored(request: BuildRequest, opened: Opened, floats: Mapping[str, nn.Module], probes: Callable[[], Probes]) -> dict[str, bytes]:
    """What the bundle keeps for adapters to come; without an adapter it has no slot for any."""
    if not opened.adapters:
        return {}
    side = opened.base.latent.side(opened.base.size)
    if request.precision == FLOAT:
        found = few_probes(opened.base, floats, opened.table, opened.adapters, opened.samples)
        return stored_files(chosen_calls(found, side), None)
    corrections = Corrections.between(floats["unet"], opened.networks["unet"], opened.mixed.folded)
    return stored_files(chosen_calls(probes(), side), corrections)


def _make(request: BuildRequest, opened: Opened, compiling: tuple[Backend, Callable[[Path], CompileContext]],
          packed: tuple[PackedAdapter, ...], stored: Mapping[str, bytes]) -> _Made:  # fmt: skip
    """The graphs, and the bundle that they are in."""
    (backend, context_in) = compiling
    with backend.writing() as writer, scratch_directory() as scratch:
        compiler = Compiler(writer, context_in(scratch))
        context = compiler.context
        # What a build writes beside its bundle is written by the run that makes the graphs.
        kept = opened.kept if request.dump_passes is None and not backend.directories else Kept(None)
        with dumping(request.dump_passes) as dump:
            artifacts = {
                name: kept_pieces.artifact(kept, name, lambda: compiler.artifact(opened.networks[name], spec, observer_of(dump, name)))  # noqa: B023
                for name, spec in opened.specs.items()
            }
        parts = BundleParts(
            request.name or request.output.name, opened.base, context.target.name, request.precision, context.target.engines,
            context.slots, context.profile, artifacts, packed, opened.base.tasks, backend.requires, stored,
        )  # fmt: skip
        with context.clock("write"):
            return _write(request, parts, opened.references)


def _write(request: BuildRequest, parts: BundleParts, references: Sequence[ComponentCall]) -> _Made:
    """The bundle on disk, once its graphs have run and come near the float networks; and how near."""
    smoke: dict[str, Mapping[str, float]] = {}
    cases = smoke_cases(references, {adapter.name: adapter.tensors for adapter in parts.adapters}, parts.slots)

    def check(stage: Path) -> Mapping[str, Golden]:
        try:
            found = run_smoke(stage, parts.engines[0], request.precision, cases, parts.slots, parts.adapters)
        except BackendError:
            forget(request)  # graphs that answer wrongly are not to be taken up again
            raise
        smoke.update(found.errors)
        return found.goldens

    return _Made(write_bundle(parts, request.output, check), smoke, parts.artifacts)


def _probes(opened: Opened, floats: Mapping[str, nn.Module]) -> Probes:
    """Calls of every adapter along runs of the float networks, with their answers: to score on, and to measure on."""
    base, samples = opened.measured, with_adapter(opened.measured, opened.samples)
    how = ProbeOptions(min_values=MIN_VALUES)
    return kept_pieces.probes(opened.kept, "probes", lambda: record_probes(base, floats, opened.table, opened.adapters, samples, how))


def _profile(request: BuildRequest, opened: Opened, needs_calls: bool, clock: StageClock, probes: Callable[[], Probes]
             ) -> tuple[Profile, SlotTable, dict[str, Any], list[ComponentCall]]:  # fmt: skip
    """The profile, the slots with the element type of the graph's inputs, how the profile came to be, and calls of the networks.

    Corrected biases are written into the networks.
    """
    parents = {"base": opened.base.digest, **{f"adapter:{adapter.name}": adapter.digest for adapter in opened.adapters}}
    if request.precision == "float":
        return Profile(encodings={}, mode=FLOAT, parents={**parents, "slots": opened.table.digest}), opened.table, {}, []
    slots = integer_slots(opened.table, request.lora_bits)
    with clock("calibrate"):
        keeper = CallKeeper.of(opened.adapters, opened.table) if needs_calls else None
        heard = CalibrationOptions(call_hook=None if keeper is None else lambda component, inputs, _: keeper.hear(component, inputs))
        feeds = calibration_feeds(opened.measured, opened.networks, opened.table, opened.adapters, opened.samples, heard)
        feeds = with_progress(feeds, len(opened.samples), "calibrate", clock.within("calibrate"))
        if keeper is not None:  # it must hear every call
            statistics = observe(opened.networks, keeper.following(feeds))
        else:
            sources = (*(adapter.name for adapter in opened.adapters), BASE_SOURCE)
            statistics = kept_pieces.observed(opened.kept, opened.networks, feeds, sources)
    scoring = Scoring(opened.networks["unet"], slots, opened.adapters, probes, clock.within("score"))
    with clock("score"):
        given = {**parents, "slots": slots.digest}
        options = UnifyOptions(
            lora_bits=request.lora_bits, ranges=request.quality.ranges, parents=given, literal_shared_scale=request.literal_shared_scale
        )
        options = replace(options, rules=opened.kept.value("rules", lambda: opened.mixed.rules(statistics, options), tuple[Rule, ...]))
        weights = {name: weights_of(network) for name, network in opened.networks.items()}
        pooled = unify(statistics, weights, slots, opened.adapters, options)
        sensitivity = opened.kept.value("sensitivity", lambda: scoring.sensitivity(pooled, statistics, options), Sensitivity)
    with clock("unify"):
        profile, shared = scoring.shared(pooled, statistics, options, sensitivity, request.anchor)
        if opened.mixed.gains:
            profile = msgspec.structs.replace(profile, gains={MIXED_COMPONENT: dict(opened.mixed.gains)})
        if request.quality.bias_correction:
            for name, network in opened.networks.items():
                apply_biases(network, corrected_biases(network, name, statistics, profile))
    return profile, slots, shared, keeper.calls() if keeper else []


def _pack(request: BuildRequest, opened: Opened, aligner: Aligner, profile: Profile, slots: SlotTable, progress: Progress
          ) -> tuple[tuple[PackedAdapter, ...], dict[str, Alignment]]:  # fmt: skip
    """The adapters as the graph reads them: floats, or integers aligned to the profile with the networks as they were in float."""
    if profile.mode == FLOAT:
        return tuple(PackedAdapter(one.name, trim(slot_inputs(one, slots), slots), one.rank, one.digest) for one in opened.adapters), {}
    return aligner.pack(request, profile, slots, progress, opened.kept)


def _profile_json(profile: Profile, shared: Mapping[str, Any]) -> dict[str, Any]:
    kinds = Counter(f"{encoding.dtype}" for encodings in profile.encodings.values() for encoding in encodings.values())
    named = {"mode": profile.mode, "anchor": profile.anchor, "digest": profile.digest, "encodings": dict(sorted(kinds.items()))}
    return {**named, **shared}
