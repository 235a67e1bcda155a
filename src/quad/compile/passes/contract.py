"""Law 6, checked by running: after a pass the outputs agree, and every slot input still matters as it did.

A slot input matters where the output changes when it is set to zero while all others hold noise. Slots are tried in groups: what a group
changes must be the same before and after the pass, so one lost slot shows in its group, and the group is halved until it has a name. A and
B of one slot are never in one group, where the loss of one would hide behind the other. A slot of less than 1 % of its group's effect can
hide too; groups of one try each alone, at one run a slot. A slot from which no way leads to the output needs no run to be found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quad.compile.passes.integers.remove_sites import RemoveSites, is_site, site_name
from quad.core.errors import VerificationError, mismatch
from quad.runtime.engines.ort import OrtSession, session_options

Arrays = Mapping[str, NDArray[Any]]

_WRITTEN = "w8a16"  # at this precision every Q/DQ is computed as it is written
_EFFECT_TOLERANCE = 0.01
_NOISE = 0.05
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ContractTrial:
    """Inputs and adapters that two graphs are compared on.

    Args:
        inputs: every input of the graph that is no slot, by name.
        adapters: label -> every slot input, in the graph's own element types; without slots, leave it empty.
        tolerance: of an output, root mean square of the error over that of the output.
        group: slot inputs tried together; 1 tries each alone.
    """

    inputs: Arrays
    adapters: Mapping[str, Arrays] = field(default_factory=dict)
    tolerance: float = 1e-5
    group: int = 16


@dataclass(frozen=True)
class ContractReport:
    """How far two graphs agree.

    Args:
        errors: label -> error of its output; `noise` is the adapter of noise.
        effects: the smallest and the largest share of the output that a group of slots changes; None without slots.
        runs: calls of either graph.
    """

    errors: dict[str, float]
    effects: tuple[float, float] | None
    runs: int


def check_contract(before: ir.Model, after: ir.Model, trial: ContractTrial, name: str = "pass") -> ContractReport:
    """Run both graphs and compare them; the models stay as they are.

    Args:
        name: of the pass, for messages.

    Raises:
        VerificationError: inputs, outputs or Sites differ, an output does, or a slot input no longer matters as it did.
    """
    _check_interface(before, after, name)
    with tempfile.TemporaryDirectory(prefix="quad-contract-") as directory:
        sessions = _load(before, Path(directory) / "before"), _load(after, Path(directory) / "after")
        pair = _Pair(sessions, trial, name)
        slots = _noise(before, trial)
        _check_reach(after, slots, name)
        errors = {label: pair.compare(label, adapter) for label, adapter in (trial.adapters or {"": {}}).items() if adapter or not slots}
        if not slots:
            return ContractReport(errors, None, pair.runs)
        errors["noise"] = pair.compare("noise", slots)
        effects = [pair.effect(group, slots) for group in _groups(slots, trial.group)]
        return ContractReport(errors, (min(effects), max(effects)), pair.runs)


def _check_interface(before: ir.Model, after: ir.Model, name: str) -> None:
    for aspect, find in (("inputs", _inputs), ("outputs", _outputs), ("Sites", _sites)):
        old, new = find(before), find(after)
        if old != new:
            odd = sorted(set(old) ^ set(new), key=str)
            difference = f"{len(new)}, first difference {odd[0] if odd else 'their order'}"
            raise VerificationError(mismatch(name, f"the same {len(old)} {aspect} after it", difference, "mend the pass"))


def _inputs(model: ir.Model) -> list[tuple[str | None, str, str]]:
    return [(value.name, str(value.shape), str(value.dtype)) for value in model.graph.inputs]


def _outputs(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.outputs]


def _sites(model: ir.Model) -> list[str]:
    return sorted({site_name(node) for node in model.graph if is_site(node)})


def _load(model: ir.Model, directory: Path) -> OrtSession:
    """A session of the graph without its Sites; weights lie in a file beside it, so that any size goes."""
    directory.mkdir()
    plain = RemoveSites()(model.clone()).model
    _join_outputs(plain.graph)
    ir.save(plain, directory / "model.onnx", external_data="model.data")
    return OrtSession(directory / "model.onnx", session_options(_WRITTEN, 1))


def _join_outputs(graph: ir.Graph) -> None:
    """Several outputs become one row of numbers: a session gives the first output only."""
    if len(graph.outputs) == 1:
        return
    tensor = ir.tensor(np.array([-1], np.int64), name="contract/row")
    row = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape((1,)), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(row)
    rows = [ir.node("Reshape", [output, row]) for output in graph.outputs]
    joined = ir.node("Concat", [node.outputs[0] for node in rows], attributes={"axis": 0})
    graph.extend([*rows, joined])
    joined.outputs[0].name, joined.outputs[0].type = "contract/outputs", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs[:] = joined.outputs


def _noise(model: ir.Model, trial: ContractTrial) -> dict[str, NDArray[Any]]:
    """Every slot input filled with noise: a real adapter is zero where it has no target."""
    generator = np.random.default_rng(_SEED)
    noise: dict[str, NDArray[Any]] = {}
    for value in model.graph.inputs:
        if value.name in trial.inputs or value.name is None or value.dtype is None or value.shape is None:
            continue
        array, dtype = generator.standard_normal(value.shape.numpy()), value.dtype.numpy()
        scale = _NOISE if dtype == np.float32 else np.iinfo(dtype).max / 8
        noise[value.name] = (array * scale).clip(-8 * scale, 8 * scale).astype(dtype)
    return noise


def _check_reach(model: ir.Model, slots: Arrays, name: str) -> None:
    reached: set[ir.Value] = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if any(output in reached for output in node.outputs):
            reached.update(value for value in node.inputs if value is not None)
    _refuse_lost([str(value.name) for value in model.graph.inputs if value.name in slots and value not in reached], name)


def _refuse_lost(lost: Sequence[str], name: str) -> None:
    if lost:
        expected, found = "every slot input to matter after it as before", f"{len(lost)} that do not, first {lost[0]}"
        raise VerificationError(mismatch(name, expected, found, "mend the pass"))


def _groups(slots: Arrays, size: int) -> list[tuple[str, ...]]:
    """Names in groups of one role, A or B."""
    groups: list[tuple[str, ...]] = []
    for role in sorted({name.rsplit(".", 1)[-1] for name in slots}):
        names = [name for name in slots if name.rsplit(".", 1)[-1] == role]
        groups += [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    return groups


def _rms(array: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


class _Pair:
    """Both graphs, called with the same numbers."""

    def __init__(self, sessions: tuple[OrtSession, OrtSession], trial: ContractTrial, name: str) -> None:
        self._sessions, self._trial, self._name = sessions, trial, name
        self._whole: tuple[NDArray[Any], NDArray[Any]] | None = None
        self.runs = 0

    def _run(self, slots: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
        self.runs += 1
        before, after = (session.run({**self._trial.inputs, **slots}) for session in self._sessions)
        return before, after

    def compare(self, label: str, slots: Arrays) -> float:
        """The error of one adapter's output; that of the last call stays as the whole that effects are measured from."""
        before, after = self._whole = self._run(slots)
        if before.shape != after.shape:
            raise VerificationError(mismatch(self._name, f"an output {before.shape} after it", after.shape, "mend the pass"))
        error = _rms(after - before) / max(_rms(before), 1e-30)
        if not error <= self._trial.tolerance:
            expected = f"the output for {label or 'the inputs'} to {self._trial.tolerance:g}"
            raise VerificationError(mismatch(self._name, expected, f"an error of {error:.2g}", "mend the pass"))
        return error

    def effect(self, group: Sequence[str], slots: Arrays) -> float:
        """The share of the output that the group changes, if it is the same in both graphs."""
        share = self._same_effect(group, slots)
        if share is None:
            _refuse_lost(self._lost(group, slots), self._name)
        return share or 0.0

    def _same_effect(self, group: Sequence[str], slots: Arrays) -> float | None:
        if self._whole is None:
            raise ValueError("effects are measured from a comparison")
        without = self._run({**slots, **{name: np.zeros_like(slots[name]) for name in group}})
        before, after = (np.subtract(whole, less, dtype=np.float64) for whole, less in zip(self._whole, without, strict=True))
        output, size = _rms(self._whole[0]), _rms(before)
        allowed = _EFFECT_TOLERANCE * size + 2 * self._trial.tolerance * output
        return size / output if _rms(after) > 0 and size > 0 and _rms(after - before) <= allowed else None

    def _lost(self, group: Sequence[str], slots: Arrays) -> tuple[str, ...]:
        """The members that no longer matter as they did, by halving."""
        if len(group) == 1:
            return tuple(group)
        half = len(group) // 2
        parts = [part for part in (group[:half], group[half:]) if self._same_effect(part, slots) is None]
        return tuple(name for part in parts for name in self._lost(part, slots)) or tuple(group)
