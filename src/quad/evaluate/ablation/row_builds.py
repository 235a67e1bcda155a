"""The builds that a row of the ablation is measured on: one for all adapters, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quad.build.request import BuildRequest
from quad.evaluate.ablation.plan import AblationRow
from quad.evaluate.ablation.reference_side import ReferenceSide
from quad.evaluate.ablation.request import AblationRequest
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.observe.calibrate import CalibrationSample
from quad.zoo.synthetic_adapter import SYNTHETIC


def build_request(
    request: AblationRequest, row: AblationRow, adapters: Mapping[str, Path], output: Path, samples: Sequence[CalibrationSample]
) -> BuildRequest:
    """The build of these adapters with the row's options."""
    places = BuildRequest(model=request.model, adapters=adapters, output=output, samples=samples)
    plain = replace(places, name="ablation", target=request.target, device=request.device)
    return replace(plain, **{"precision": row.precision, **row.build}, quality=QualitySteps(**row.quality))


@dataclass(frozen=True)
class RowBuild:
    """One build of a row: which adapters, and the tasks that are measured on it."""

    adapters: Mapping[str, Path]
    tasks: tuple[str, ...]


def row_builds(request: AblationRequest, row: AblationRow, tasks: Mapping[str, str | None]) -> list[RowBuild]:
    """One build for all, or one for each adapter; the base alone has no slots to build, so its task is not in a row built per adapter."""
    if not row.per_adapter:
        return [RowBuild({**request.adapters, SYNTHETIC: request.synthetic_dir} if row.synthetic else request.adapters, tuple(tasks))]
    owners = {name: tuple(task for task, adapter in tasks.items() if adapter == name) for name in request.adapters}
    return [RowBuild({name: request.adapters[name]}, owned) for name, owned in owners.items() if owned]


def measured_tasks(request: AblationRequest, reference: ReferenceSide) -> dict[str, str | None]:
    """Task -> its adapter, of the tasks that this request can measure."""
    return {task: spec.adapter for task, spec in reference.tasks.items() if spec.adapter is None or spec.adapter in request.adapters}
