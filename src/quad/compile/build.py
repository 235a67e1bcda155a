"""The whole way from a model directory to a bundle directory, straight.

open -> lora -> slot -> solve -> equalize -> calibrate -> score -> unify -> align -> export -> place [-> compile -> emulate] -> write
(with a smoke run before the bundle gets its name)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from quad.compile.alignment import Aligner, forget_checkpoints, keep_float, require_truths
from quad.compile.artifact import Artifact
from quad.compile.calls import CallKeeper
from quad.compile.components import component_specs, sinusoid_of
from quad.compile.dump import CENSUS_FILE, OPTION, dumping, observer_of
from quad.compile.edges import Call
from quad.compile.export import GraphSpec
from quad.compile.graphs import Compiler, emulation_json, placement_json
from quad.compile.htp import require_compiler
from quad.compile.mixed import Mixed
from quad.compile.processes import is_main, once
from quad.compile.qairt import ENCODINGS_FILE, ENCODINGS_OPTION, for_converter
from quad.compile.request import BuildRequest, BuildResult
from quad.compile.scoring import Scoring
from quad.compile.smoke import Reference, float_references, run_smoke, smoke_cases
from quad.compile.solvers import solve_tasks
from quad.compile.stages import Progress, StageClock, peak_ram_bytes, silent, told
from quad.compile.targets import Target, check_precision, load_target
from quad.compile.write import BundleParts, PackedAdapter, rom_bytes, write_bundle
from quad.core.errors import BackendError, QuadError
from quad.core.files import require_replaceable, scratch_directory
from quad.core.manifest import BUNDLE_FILE, BundleManifest
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.model.base import Base, open_model
from quad.model.lora import FloatAdapter, read_lora
from quad.model.slotted import slot_inputs, slot_network
from quad.quantize import (
    CalibrationOptions,
    CalibrationSample,
    UnifyOptions,
    apply_biases,
    calibration_feeds,
    component_networks,
    corrected_biases,
    integer_slots,
    observe,
    record_probes,
    unify,
    weights_of,
)
from quad.quantize.distill import Alignment
from quad.quantize.precision import FLOAT, eight_bit_percent
from quad.quantize.rules import MIXED_COMPONENT
from quad.runtime.bundle import open_bundle

__all__ = ["STAGES", "BuildRequest", "BuildResult", "build"]

STAGES = (
    "open", "lora", "slot", "solve", "equalize", "calibrate", "score", "unify", "align", "export", "place", "compile", "emulate", "write",
)  # fmt: skip


@dataclass(frozen=True)
class _Opened:
    """What the first stages give: the model, its networks with Sites, and its slots as they will be in the graph."""

    base: Base
    mixed: Mixed
    samples: tuple[CalibrationSample, ...]
    networks: Mapping[str, nn.Module]
    table: SlotTable
    specs: Mapping[str, GraphSpec]
    references: tuple[Reference, ...]

    @property
    def adapters(self) -> tuple[FloatAdapter, ...]:
        """As they fit the networks."""
        return self.mixed.adapters


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
    if target.integers_only:
        require_compiler()
    require_replaceable(request.output, BUNDLE_FILE)
    if request.dump_passes is not None:
        require_replaceable(request.dump_passes, CENSUS_FILE, OPTION)
    if request.encodings_dir is not None:
        require_replaceable(request.encodings_dir, ENCODINGS_FILE, ENCODINGS_OPTION)
    try:
        return _build(request, target, StageClock(STAGES, progress if is_main() else silent), start)
    except QuadError as error:
        if not isinstance(error, BackendError):  # after a full disk, or a kill, training goes on; other input is another run
            forget_checkpoints(request)
        raise


def _build(request: BuildRequest, target: Target, clock: StageClock, start: float) -> BuildResult:
    opened = _open(request, clock)
    floats = keep_float(opened.networks)
    profile, slots, shared, calls = _profile(request, opened, target, clock)
    with clock("align"):
        packed, alignment = _pack(request, opened, floats, profile, slots, clock.within("align"))

    def compiler(scratch: Path, encodings: Path | None) -> Compiler:
        return Compiler(target, profile, slots, clock, scratch, calls, sinusoid_of(opened.base), encodings, request.chip)

    made = once(lambda: _make(request, opened, compiler, packed), lambda: _Made(open_bundle(request.output).manifest))
    forget_checkpoints(request)
    clock.done()
    return BuildResult(
        request.output, made.manifest, time.perf_counter() - start, peak_ram_bytes(), _profile_json(profile, shared),
        placement_json(made.artifacts), clock.seconds, made.smoke, rom_bytes(made.manifest, packed),
        {name: found.to_json() for name, found in alignment.items()}, emulation_json(made.artifacts),
    )  # fmt: skip


def _make(request: BuildRequest, opened: _Opened, compiler_in: Callable[[Path, Path | None], Compiler],
          packed: tuple[PackedAdapter, ...]) -> _Made:  # fmt: skip
    """The graphs, and the bundle that they are in."""
    with for_converter(request.encodings_dir) as encodings, scratch_directory() as scratch:
        compiler = compiler_in(scratch, encodings)
        with dumping(request.dump_passes) as dump:
            artifacts = {
                name: compiler.artifact(opened.networks[name], spec, observer_of(dump, name)) for name, spec in opened.specs.items()
            }
        parts = BundleParts(
            request.name or request.output.name, opened.base, compiler.target.name, request.precision, compiler.target.engines,
            compiler.slots, compiler.profile, artifacts, packed, opened.base.tasks, compiler.requires,
        )  # fmt: skip
        with compiler.clock("write"):
            return _write(request, parts, opened.references)


def _write(request: BuildRequest, parts: BundleParts, references: Sequence[Reference]) -> _Made:
    """The bundle on disk, once its graphs have run and come near the float networks; and how near."""
    smoke: dict[str, dict[str, float]] = {}
    cases = smoke_cases(references, {adapter.name: adapter.tensors for adapter in parts.adapters}, parts.slots)

    def check(stage: Path) -> None:
        smoke.update(run_smoke(stage, parts.engines[0], request.precision, cases))

    return _Made(write_bundle(parts, request.output, check), smoke, parts.artifacts)


def _open(request: BuildRequest, clock: StageClock) -> _Opened:
    with clock("open"):
        base = open_model(request.model)
    with clock("lora"):
        adapters = tuple(read_lora(name, path, base.unet, request.allow_unused_keys) for name, path in request.adapters.items())
    wanted = {None, *request.adapters}
    base = replace(base, tasks={name: spec for name, spec in base.tasks.items() if spec.adapter in wanted})
    samples = tuple(sample for sample in request.samples if sample.task in base.tasks and (sample.adapter or None) in wanted)
    if request.lambda_:
        require_truths(base, adapters, samples)
    with clock("slot"):
        network, table = slot_network(base.unet, adapters, request.max_rank)
        mixed = Mixed(network, table, adapters, request.quality, eight_bit_percent(request.precision) or 0.0)
        mixed.split()
        networks = component_networks(base, network)
        specs = component_specs(base, networks, table)
        # Taken here because bias correction will change the networks.
        references = float_references(networks, specs, table, adapters)
    with clock("solve"):
        base = solve_tasks(base, networks, table, adapters, samples)
    with clock("equalize"):
        if mixed.needs_probes:
            mixed = replace(mixed, probes=record_probes(base, networks, table, adapters, samples))
        mixed = mixed.equalized()
    return _Opened(base, mixed, samples, networks, table, specs, references)


def _profile(request: BuildRequest, opened: _Opened, target: Target, clock: StageClock
             ) -> tuple[Profile, SlotTable, dict[str, Any], list[Call]]:  # fmt: skip
    """The profile, the slots with the element type of the graph's inputs, how the profile came to be, and calls of the networks.

    Corrected biases are written into the networks.
    """
    parents = {"base": opened.base.digest, **{f"adapter:{adapter.name}": adapter.digest for adapter in opened.adapters}}
    if request.precision == "float":
        return Profile({}, mode=FLOAT, parents={**parents, "slots": opened.table.digest}), opened.table, {}, []
    slots = integer_slots(opened.table, request.lora_bits)
    with clock("calibrate"):
        keeper = CallKeeper.of(opened.adapters, opened.table) if target.integers_only else None
        heard = CalibrationOptions(listener=keeper.hear if keeper else None)
        feeds = calibration_feeds(opened.base, opened.networks, opened.table, opened.adapters, opened.samples, heard)
        feeds = told(feeds, len(opened.samples), "calibrate", clock.within("calibrate"))
        statistics = observe(opened.networks, keeper.following(feeds) if keeper else feeds)
    scoring = Scoring(opened.base, opened.networks, slots, opened.adapters, opened.samples)
    with clock("score"):
        given = {**parents, "slots": slots.digest}
        options = UnifyOptions(request.lora_bits, request.quality.ranges, parents=given, literal_shared_scale=request.literal_shared_scale)
        options = replace(options, rules=opened.mixed.rules(statistics, options))
        weights = {name: weights_of(network) for name, network in opened.networks.items()}
        pooled = unify(statistics, weights, slots, opened.adapters, options)
        sensitivity = scoring.sensitivity(pooled, statistics, options)
    with clock("unify"):
        profile, shared = scoring.shared(pooled, statistics, options, sensitivity, request.anchor)
        if opened.mixed.gains:
            profile = msgspec.structs.replace(profile, gains={MIXED_COMPONENT: dict(opened.mixed.gains)})
        if request.quality.bias_correction:
            for name, network in opened.networks.items():
                apply_biases(network, corrected_biases(network, name, statistics, profile))
    return profile, slots, shared, keeper.calls() if keeper else []


def _pack(request: BuildRequest, opened: _Opened, floats: Mapping[str, nn.Module], profile: Profile, slots: SlotTable, progress: Progress
          ) -> tuple[tuple[PackedAdapter, ...], dict[str, Alignment]]:  # fmt: skip
    """The adapters as the graph reads them: floats, or integers aligned to the profile with the networks as they were in float."""
    if profile.mode == FLOAT:
        return tuple(PackedAdapter(one.name, slot_inputs(one, slots), one.rank, one.digest) for one in opened.adapters), {}
    aligner = Aligner(opened.base, floats, opened.networks["unet"], opened.table, opened.adapters, opened.samples)
    return aligner.pack(request, profile, slots, progress)


def _profile_json(profile: Profile, shared: Mapping[str, Any]) -> dict[str, Any]:
    kinds = Counter(f"{encoding.dtype}" for encodings in profile.encodings.values() for encoding in encodings.values())
    named = {"mode": profile.mode, "anchor": profile.anchor, "digest": profile.digest, "encodings": dict(sorted(kinds.items()))}
    return {**named, **shared}
