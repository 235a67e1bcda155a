"""The whole way from a model directory to a bundle directory, straight.

open -> lora -> slot -> solve -> calibrate -> unify -> export -> place -> write (with a smoke run before the bundle gets its name)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from quad.compile.components import component_specs
from quad.compile.export import GraphSpec, export_graph
from quad.compile.qdq import Placed, place_float, place_qdq
from quad.compile.request import BuildRequest, BuildResult
from quad.compile.smoke import Reference, float_references, run_smoke, smoke_cases
from quad.compile.solvers import solve_tasks
from quad.compile.stages import Progress, StageClock, peak_ram_bytes, silent
from quad.compile.targets import Target, check_precision, load_target
from quad.compile.write import BundleParts, PackedAdapter, rom_bytes, write_bundle
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.model.base import Base, open_model
from quad.model.lora import FloatAdapter, read_lora
from quad.model.slotted import slot_inputs, slot_network
from quad.quantize import (
    CalibrationSample,
    UnifyOptions,
    apply_biases,
    calibrate,
    component_networks,
    corrected_biases,
    integer_slots,
    quantize_adapter,
    unify,
    weights_of,
)

__all__ = ["STAGES", "BuildRequest", "BuildResult", "build"]

STAGES = ("open", "lora", "slot", "solve", "calibrate", "unify", "export", "place", "write")
FLOAT_MODE = "float"


@dataclass(frozen=True)
class _Opened:
    """What the first stages give: the model, its networks with Sites, and its slots as they will be in the graph."""

    base: Base
    adapters: tuple[FloatAdapter, ...]
    samples: tuple[CalibrationSample, ...]
    networks: Mapping[str, nn.Module]
    table: SlotTable
    specs: Mapping[str, GraphSpec]
    references: tuple[Reference, ...]


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
    clock = StageClock(STAGES, progress)
    opened = _open(request, clock)
    profile, slots = _profile(request, opened, clock)
    packed = tuple(_pack(adapter, slots, profile) for adapter in opened.adapters)
    placed = {name: _graph(opened.networks[name], spec, profile, slots, target, clock) for name, spec in opened.specs.items()}
    parts = BundleParts(
        request.name or request.output.name, opened.base, target.name, request.precision, target.engines, slots, profile,
        {name: graph.model for name, graph in placed.items()}, packed, opened.base.tasks,
    )  # fmt: skip
    smoke: dict[str, dict[str, float]] = {}
    cases = smoke_cases(opened.references, {adapter.name: adapter.tensors for adapter in packed}, slots)

    def check(stage: Path) -> None:
        smoke.update(run_smoke(stage, target.engines[0], request.precision, cases))

    with clock("write"):
        manifest = write_bundle(parts, request.output, check)
    progress("done", 1.0)
    return BuildResult(
        request.output, manifest, time.perf_counter() - start, peak_ram_bytes(), _profile_json(profile), _placement_json(placed),
        clock.seconds, smoke, rom_bytes(manifest, packed),
    )  # fmt: skip


def _open(request: BuildRequest, clock: StageClock) -> _Opened:
    with clock("open"):
        base = open_model(request.model)
    with clock("lora"):
        adapters = tuple(read_lora(name, path, base.unet, request.allow_unused_keys) for name, path in request.adapters.items())
    wanted = {None, *request.adapters}
    base = replace(base, tasks={name: spec for name, spec in base.tasks.items() if spec.adapter in wanted})
    samples = tuple(sample for sample in request.samples if sample.task in base.tasks and (sample.adapter or None) in wanted)
    with clock("slot"):
        network, table = slot_network(base.unet, adapters, request.max_rank)
        networks = component_networks(base, network)
        specs = component_specs(base, networks, table)
        # Taken here because bias correction will change the networks.
        references = float_references(networks, specs, table, adapters)
    with clock("solve"):
        base = solve_tasks(base, networks, table, adapters, samples)
    return _Opened(base, adapters, samples, networks, table, specs, references)


def _profile(request: BuildRequest, opened: _Opened, clock: StageClock) -> tuple[Profile, SlotTable]:
    """The profile, and the slots with the element type of the graph's inputs; corrected biases are written into the networks."""
    parents = {"base": opened.base.digest, **{f"adapter:{adapter.name}": adapter.digest for adapter in opened.adapters}}
    if request.precision == "float":
        return Profile({}, mode=FLOAT_MODE, parents={**parents, "slots": opened.table.digest}), opened.table
    slots = integer_slots(opened.table, request.lora_bits)
    with clock("calibrate"):
        statistics = calibrate(opened.base, opened.networks, opened.table, opened.adapters, opened.samples)
    with clock("unify"):
        options = UnifyOptions(lora_bits=request.lora_bits, parents={**parents, "slots": slots.digest})
        weights = {name: weights_of(network) for name, network in opened.networks.items()}
        profile = unify(statistics, weights, slots, opened.adapters, options)
        if request.bias_correction:
            for name, network in opened.networks.items():
                apply_biases(network, corrected_biases(network, name, statistics, profile))
    return profile, slots


def _pack(adapter: FloatAdapter, slots: SlotTable, profile: Profile) -> PackedAdapter:
    tensors: Mapping[str, NDArray[Any]]
    tensors = slot_inputs(adapter, slots) if profile.mode == FLOAT_MODE else quantize_adapter(adapter, slots, profile)
    return PackedAdapter(adapter.name, tensors, adapter.rank, adapter.digest)


def _graph(network: nn.Module, spec: GraphSpec, profile: Profile, slots: SlotTable, target: Target, clock: StageClock) -> Placed:
    with clock("export"):
        model = export_graph(network, spec)
    with clock("place"):
        if profile.mode == FLOAT_MODE:
            return place_float(model)
        own = SlotTable(tuple(slot for slot in slots.slots if slot.component == spec.component))
        return place_qdq(model, profile.component(spec.component), own, target)


def _profile_json(profile: Profile) -> dict[str, Any]:
    kinds = Counter(f"{encoding.dtype}" for encodings in profile.encodings.values() for encoding in encodings.values())
    return {"mode": profile.mode, "anchor": profile.anchor, "digest": profile.digest, "encodings": dict(sorted(kinds.items()))}


def _placement_json(placed: Mapping[str, Placed]) -> dict[str, Any]:
    return {**placed["unet"].placement, "components": {name: graph.placement for name, graph in placed.items()}}
