"""Before a bundle gets its name: every graph is loaded by the engine that will run it and compared with the float network. Golden outputs
are taken while the U-Net is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.compile.export import GraphSpec
from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.decibels import relative_error
from quad.core.errors import BackendError, VerificationError, mismatch
from quad.core.manifest import Bf16Proof, Golden
from quad.core.picture_size import component_of, graph_name
from quad.core.profile import Profile
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.device import device_of, moved
from quad.model.slots.slot_tensors import slot_tensors
from quad.quantize.observe.side_by_side import side_by_side
from quad.runtime.adapters.buffers import ZeroBuffers, pad, zero_buffers
from quad.runtime.adapters.packed import PackedAdapter
from quad.runtime.engines.engine import Session
from quad.runtime.engines.float_types import in_bf16
from quad.runtime.engines.memo import MemoEngine
from quad.runtime.fixed_threads import ENGINE_THREADS
from quad.runtime.golden_outputs import calls_of, golden

# Relative RMS error of one network call against float torch. Float graphs differ by rounding only; a quantized graph of a sane profile
# stays under 0.05, and one whose encodings went to the wrong tensors is beyond 0.5.
LIMITS = {"float": 1e-3}
QUANTIZED_LIMIT = 0.3
BF16_LOSS_DB = 2.0  # of the denoiser's SQNR against f32, at most: what the reference model's pictures bear (ADR 43)


@dataclass(frozen=True, kw_only=True)
class SmokeFiles:
    """The files of a bundle that is tried: its graphs by name, its stored calls, which need not be there, its profile, and the tensors of
    its base's correction."""

    graphs: Mapping[str, Path]
    probes: Path
    profile: Profile | None = None
    correction: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def zeros(self, slots: SlotTable) -> ZeroBuffers:
        """The base of a graph with these slots."""
        return zero_buffers(slots, self.profile, self.correction)


@dataclass(frozen=True)
class SmokeResult:
    """How near the graphs come to the float networks.

    Args:
        errors: component -> case -> relative error.
        goldens: adapter -> its golden output.
        bf16: the engine's proof, where it and this processor have bf16, and the denoiser keeps what it is in f32.
    """

    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    goldens: Mapping[str, Golden] = field(default_factory=dict)
    bf16: Bf16Proof | None = None


def float_references(networks: Mapping[str, nn.Module], specs: Mapping[str, GraphSpec], table: SlotTable,
                     adapters: Sequence[FloatAdapter]) -> tuple[ComponentCall, ...]:  # fmt: skip
    """One call of each graph by its network; of a slotted one, one per adapter and one of the base.

    Args:
        specs: by name of the graph, which is the `component` of its calls.
        table: of all components.
    """

    def reference(asked: tuple[str, GraphSpec, FloatAdapter | None]) -> ComponentCall:
        name, spec, adapter = asked
        network, device = networks[spec.component], device_of(networks[spec.component])
        slots = slot_tensors(slot_inputs(adapter, table), table.of(spec.component), device) if spec.slots else None
        with torch.no_grad():
            output = network(*moved(tuple(spec.inputs.values()), device), **({} if slots is None else {"slots": slots}))
        inputs = {key: tensor.numpy() for key, tensor in spec.inputs.items()}
        return ComponentCall(component=name, source=adapter.name if adapter else BASE_SOURCE, inputs=inputs, expected=output.cpu().numpy())

    every = [(name, spec, adapter) for name, spec in specs.items() for adapter in ((None, *adapters) if spec.slots else (None,))]
    return tuple(side_by_side(reference, every))


def smoke_cases(references: Sequence[ComponentCall], packed: Mapping[str, Mapping[str, NDArray[np.generic]]], slots: SlotTable
                ) -> tuple[ComponentCall, ...]:  # fmt: skip
    """The same calls for the shipped graphs: slot inputs in the graph's dtype, at the adapter's own ranks; absent ones are zero."""
    tables = {graph: slots.of(component_of(graph)) for graph in {reference.component for reference in references}}
    names = {graph: {*table.input_shapes(), *(slot.scale_name for slot in table.slots)} for graph, table in tables.items()}

    def bound(reference: ComponentCall) -> dict[str, NDArray[np.generic]]:
        return {name: tensor for name, tensor in packed.get(reference.source, {}).items() if name in names[reference.component]}

    return tuple(replace(reference, slots=bound(reference)) for reference in references)


def of_groups(references: Sequence[ComponentCall], group_of: Mapping[str, int], groups: int) -> tuple[ComponentCall, ...]:
    """The same calls for the graphs of several groups of adapters, those of one graph side by side: an adapter's for its own group's U-Net,
    the base's for each.

    Args:
        group_of: adapter -> number of its group, counted from 0.
    """
    calls: dict[str, list[ComponentCall]] = {}
    for group in range(groups):
        for call in references:
            grouped = component_of(call.component) == UNET and call.source != BASE_SOURCE
            everywhere = component_of(call.component) == UNET or group == 0
            if group == group_of.get(call.source, 0) if grouped else everywhere:
                graph = graph_name(call.component, None, group)
                calls.setdefault(graph, []).append(replace(call, component=graph))
    return tuple(call for graph in calls.values() for call in graph)


def run_smoke(files: SmokeFiles, engine: MemoEngine, precision: str, cases: Sequence[ComponentCall], slots: SlotTable,
              adapters: Sequence[PackedAdapter] = ()) -> SmokeResult:  # fmt: skip
    """Run every case; adapters are padded to the slots one by one, as on a device. Each graph is loaded once.

    Args:
        cases: with the float network's outputs, those of one component side by side.
        adapters: whose golden outputs are taken where there are stored probes.

    Raises:
        BackendError: a graph does not load, gives another shape or NaN, or is far from the float network.
    """
    short, limit = in_bf16(engine), LIMITS.get(precision, QUANTIZED_LIMIT)

    def run(trial: _Trial) -> _Tried:
        graph = trial.graph
        session, zeros = engine.load(files.graphs[graph], ENGINE_THREADS), files.zeros(slots.of(component_of(graph)))
        errors = {case.source: _error(session, case, zeros, limit) for case in trial.cases}
        goldens = _goldens(files.probes, session, trial.adapters, zeros)
        if short is None or component_of(graph) != UNET:
            return _Tried(graph=graph, errors=errors, goldens=goldens)
        del session
        session = short.load(files.graphs[graph], ENGINE_THREADS)
        in_short = [_error(session, case, zeros, float("inf")) for case in trial.cases]
        return _Tried(graph=graph, errors=errors, goldens=goldens, in_short=in_short)

    trials = _trials(cases, adapters, lambda graph: engine.keeps(files.graphs[graph]))
    # Other engines take many cores, or a compiler's memory, for one graph.
    tried = side_by_side(run, trials) if engine.name == "ort" else [run(trial) for trial in trials]
    errors: dict[str, dict[str, float]] = {case.component: {} for case in cases}
    for one in tried:
        errors[one.graph] |= one.errors
    in_short = [error for one in tried for error in one.in_short]
    in_f32 = [error for one in tried if one.in_short for error in one.errors.values()]
    return SmokeResult(
        errors,
        {name: output for one in tried for name, output in one.goldens.items()},
        _proof(engine.name, max(in_f32, default=0.0), max(in_short, default=0.0)),
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Cases of one graph that run one after the other, and adapters whose golden outputs are taken on it."""

    graph: str
    cases: Sequence[ComponentCall]
    adapters: Sequence[PackedAdapter]


def _trials(cases: Sequence[ComponentCall], adapters: Sequence[PackedAdapter], kept: Callable[[str], bool]) -> list[_Trial]:
    """All of a graph at once; of one that stays in memory each source by itself. The first of every graph, which loads it, come first."""
    turns: list[tuple[int, _Trial]] = []
    for graph, calls in groupby(cases, lambda case: case.component):
        of_graph = list(calls)
        own = [adapter for adapter in adapters if graph_name(UNET, None, adapter.group) == graph]
        names = dict.fromkeys([*(case.source for case in of_graph), *(adapter.name for adapter in own)])
        for turn, sources in enumerate([{name} for name in names] if kept(graph) else [{*names}]):
            trial = _Trial(
                graph=graph,
                cases=[case for case in of_graph if case.source in sources],
                adapters=[adapter for adapter in own if adapter.name in sources],
            )
            turns.append((turn, trial))
    return [trial for _, trial in sorted(turns, key=lambda turn: turn[0] > 0)]


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """One graph's errors by case, golden outputs by adapter, errors in bf16 where that was tried."""

    graph: str
    errors: dict[str, float]
    goldens: dict[str, Golden]
    in_short: Sequence[float] = ()


def _proof(engine: str, in_f32: float, in_short: float) -> Bf16Proof | None:
    """The proof of these largest relative errors; None where bf16 was not tried, or loses too much."""
    if not 0.0 < in_short < math.inf or in_f32 <= 0.0:
        return None
    output_db, f32_db = (round(-20 * math.log10(error), 2) for error in (in_short, in_f32))
    return Bf16Proof(engine=engine, output_db=output_db, f32_db=f32_db) if output_db >= f32_db - BF16_LOSS_DB else None


def _error(session: Session, case: ComponentCall, zeros: ZeroBuffers, limit: float) -> float:
    if zeros:
        session.bind(pad(case.slots, zeros))
    where = f"smoke run of {case.component} with {case.source}"
    if case.expected is None:
        raise ValueError(f"{where}: nobody ran the float network")
    output = session.run(case.inputs)
    if output.shape != case.expected.shape or not np.isfinite(output).all():
        raise BackendError(mismatch(where, f"finite {case.expected.shape}", f"{output.shape}", "report it with the model's name"))
    error = relative_error(output, case.expected)
    if error > limit:
        hint = "calibrate with more samples or build with --precision float"
        raise BackendError(mismatch(where, f"relative error <= {limit}", f"{error:.3g}", hint))
    return error


def _goldens(probes: Path, session: Session, adapters: Sequence[PackedAdapter], zeros: ZeroBuffers) -> dict[str, Golden]:
    """The golden output of every adapter on the first stored probe; none where nothing is stored."""
    if not adapters or not probes.is_file():
        return {}
    call, goldens = calls_of(probes)[0], {}
    for adapter in adapters:
        session.bind(pad(adapter.tensors, zeros))
        try:
            goldens[adapter.name] = golden(adapter.name, session, call, 0)
        except VerificationError as error:
            raise BackendError(f"smoke run of {UNET}, {error}") from error
    return goldens
