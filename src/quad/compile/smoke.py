"""Before a bundle gets its name: every graph is loaded by the engine that will run it and compared with the float network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.compile.export import GraphSpec
from quad.compile.write import PackedAdapter
from quad.core.errors import BackendError, VerificationError, mismatch
from quad.core.manifest import PROBES_FILE, Golden
from quad.core.padding import pad
from quad.core.slots import UNET, SlotTable
from quad.model.lora import FloatAdapter
from quad.model.slotted import slot_inputs
from quad.runtime.buffers import zero_buffers
from quad.runtime.engine import Session, default_threads, open_engine
from quad.runtime.golden import calls_of, golden

# Relative RMS error of one network call against float torch. Float graphs differ by rounding only; a quantized graph of a sane profile
# stays under 0.05, and one whose encodings went to the wrong tensors is beyond 0.5.
LIMITS = {"float": 1e-3}
QUANTIZED_LIMIT = 0.3


@dataclass(frozen=True)
class SmokeCase:
    """One call of one graph.

    Args:
        label: adapter name, or `base`.
        expected: what the float torch network returns.
        bound: slot inputs in the graph's own dtype, at the adapter's own ranks; what is not there is zero.
    """

    component: str
    label: str
    inputs: Mapping[str, NDArray[np.generic]]
    expected: NDArray[np.floating]
    bound: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What the float torch network makes of the example inputs, for one adapter (`base` for none)."""

    component: str
    label: str
    inputs: Mapping[str, NDArray[np.generic]]
    expected: NDArray[np.floating]


def float_references(networks: Mapping[str, nn.Module], specs: Mapping[str, GraphSpec], table: SlotTable,
                     adapters: Sequence[FloatAdapter]) -> tuple[Reference, ...]:  # fmt: skip
    """One call of each network; of a slotted one, one per adapter and one of the base.

    Args:
        table: of all components.
    """
    found = []
    for component, spec in specs.items():
        inputs = {name: tensor.numpy() for name, tensor in spec.inputs.items()}
        for adapter in (None, *adapters) if spec.slots else (None,):
            slots = {name: torch.from_numpy(values) for name, values in slot_inputs(adapter, table).items()} if spec.slots else None
            with torch.no_grad():
                output = networks[component](*spec.inputs.values(), *(() if slots is None else (slots,)))
            found.append(Reference(component, adapter.name if adapter else "base", inputs, output.numpy()))
    return tuple(found)


def smoke_cases(references: Sequence[Reference], packed: Mapping[str, Mapping[str, NDArray[np.generic]]], slots: SlotTable
                ) -> tuple[SmokeCase, ...]:  # fmt: skip
    """The same calls for the shipped graphs, with the packed adapters."""
    own = {component: slots.of(component).input_shapes() for component in {reference.component for reference in references}}

    def bound(reference: Reference) -> dict[str, NDArray[np.generic]]:
        return {name: tensor for name, tensor in packed.get(reference.label, {}).items() if name in own[reference.component]}

    return tuple(SmokeCase(r.component, r.label, r.inputs, r.expected, bound(r)) for r in references)


def relative_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """RMS of the difference over RMS of `expected`."""
    rms = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))) / max(rms, 1e-12)


def run_smoke(root: Path, engine: str, precision: str, cases: Sequence[SmokeCase], slots: SlotTable) -> dict[str, dict[str, float]]:
    """Component -> case -> relative error; adapters are padded to the slots one by one, as on a device.

    Raises:
        BackendError: a graph does not load, gives another shape or NaN, or is far from the float network.
    """
    opened = open_engine(engine, (), precision)
    session: Session | None = None
    loaded = ""
    errors: dict[str, dict[str, float]] = {}
    zeros = {component: zero_buffers(slots.of(component)) for component in {case.component for case in cases}}
    for case in cases:
        if session is None or case.component != loaded:
            session = None  # one graph in memory at a time
            session, loaded = opened.load(root / case.component / "model.onnx", default_threads()), case.component
        if zeros[case.component]:
            session.bind(pad(case.bound, zeros[case.component]))
        found = session.run(case.inputs)
        where = f"smoke run of {case.component} with {case.label}"
        if found.shape != case.expected.shape or not np.isfinite(found).all():
            raise BackendError(mismatch(where, f"finite {case.expected.shape}", f"{found.shape}", "report it with the model's name"))
        error, limit = relative_error(found, case.expected), LIMITS.get(precision, QUANTIZED_LIMIT)
        if error > limit:
            then = "calibrate with more samples or build with --precision float"
            raise BackendError(mismatch(where, f"relative error <= {limit}", f"{error:.3g}", then))
        errors.setdefault(case.component, {})[case.label] = error
    return errors


def golden_outputs(root: Path, engine: str, precision: str, adapters: Sequence[PackedAdapter], slots: SlotTable) -> dict[str, Golden]:
    """The golden output of every adapter on the first stored probe, by the engine that will run it; none where nothing is stored.

    Raises:
        BackendError: the graph does not load, or an answer is not finite.
    """
    if not (root / PROBES_FILE).is_file():
        return {}
    call = calls_of(root / PROBES_FILE)[0]
    session = open_engine(engine, (), precision).load(root / UNET / "model.onnx", default_threads())
    zeros = zero_buffers(slots.of(UNET))
    found = {}
    for adapter in adapters:
        session.bind(pad(adapter.tensors, zeros))
        try:
            found[adapter.name] = golden(adapter.name, session, call, 0)
        except VerificationError as error:
            raise BackendError(f"smoke run of {UNET}, {error}") from error
    return found
