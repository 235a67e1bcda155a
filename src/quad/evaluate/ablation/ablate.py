"""`quad ablate`: every row of the plan is built, run and compared with full precision; the paper's tables 4 and 5, and ours.

A row that was measured is kept in `rows.json` with what it was measured from, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from quad.build.calls.call_recorder import spread
from quad.build.fixed_threads import fixed_threads
from quad.core.processes import is_main
from quad.core.progress import Progress
from quad.evaluate.ablation.later import LaterAdapters
from quad.evaluate.ablation.later_truth import LaterCall, call_of
from quad.evaluate.ablation.measure_row import BUNDLE_PREFIX, measure_row
from quad.evaluate.ablation.pictures import keep_pictures
from quad.evaluate.ablation.plan import BASELINE, MOST_SENSITIVE, AblationRow
from quad.evaluate.ablation.reference_side import ReferenceSide
from quad.evaluate.ablation.request import AblationRequest
from quad.evaluate.ablation.results import AblationResult, StoredRow, StoredRows
from quad.evaluate.ablation.row_builds import measured_tasks, row_builds
from quad.evaluate.ablation.stored_rows import ROW, ROWS_FILE, MeasuredRow, read_rows, row_key
from quad.evaluate.page.output import write_json
from quad.lora.file import find_lora
from quad.quantize.processes.dealt import dealt, json_codec, shared
from quad.zoo.synthetic_adapter import write_amplified

LATER_CALLS = 8  # of all tasks together, that later adapters are measured on


def ablate(request: AblationRequest, progress: Progress) -> list[AblationResult]:
    """Measure all rows that are not measured yet.

    Args:
        progress: called with the row that begins and the share of the whole done.

    Returns:
        The rows of `quad ablate --json`, in the order of the plan; those of one build for each adapter only where a task names an adapter.

    Raises:
        QuadError: as `AblationRequest.check`, `build` and the engine raise; rows measured before stay.
    """
    request.check()
    adapters, later_files = ({name: find_lora(path) for name, path in named.items()} for named in (request.adapters, request.later))
    request = replace(request, adapters=adapters, later=later_files)
    if any(row.synthetic for row in request.rows):
        write_amplified(request.adapters[min(request.adapters)], request.synthetic_dir)
    for stale in request.out.glob(f"{BUNDLE_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a run that was killed
    with fixed_threads():
        return _ablate(request, progress)


def _ablate(request: AblationRequest, progress: Progress) -> list[AblationResult]:
    progress("open", 0.0)
    reference = ReferenceSide(request.model, adapters=request.adapters, n=request.n, cache=request.out / "fp32", device=request.device)
    stored = shared(lambda: read_rows(request.out / ROWS_FILE), json_codec(dict[str, StoredRow]))
    later = _later(request, reference)
    tasks = measured_tasks(request, reference)
    rows = [row for row in request.rows if row_builds(request, row, tasks)]

    def stale(row: AblationRow) -> bool:
        return row.name not in stored or stored[row.name].key != row_key(request, reference, _resolved(row, stored))

    def following(left: Sequence[AblationRow]) -> Iterator[AblationRow]:
        for row in left:
            progress(row.name, rows.index(row) / len(rows))
            yield row

    def measured(row: AblationRow) -> MeasuredRow:
        resolved = _resolved(row, stored)
        result, pictures = measure_row(request, reference, resolved, later)
        return MeasuredRow(StoredRow(**msgspec.structs.asdict(result), key=row_key(request, reference, resolved)), pictures)

    # The first row says which adapter is the most sensitive one: rows that ask for its ranges wait for all before them.
    first = next((number for number, row in enumerate(rows) if _needs_ranking(row)), len(rows))
    for some in (rows[:first], rows[first:]):
        for result in dealt(measured, following([row for row in some if stale(row)]), ROW):
            stored[result.row.name] = result.row
            if is_main():
                keep_pictures(request.out, result.pictures)
                write_json(request.out / ROWS_FILE, msgspec.to_builtins(StoredRows(list(stored.values()))))
    progress("done", 1.0)
    return [msgspec.convert(stored[row.name], AblationResult, from_attributes=True) for row in rows]


def _later(request: AblationRequest, reference: ReferenceSide) -> LaterAdapters:
    """The later adapters, on calls of all tasks that have an adapter."""

    def calls() -> list[LaterCall]:
        own = {task: spec for task, spec in reference.tasks.items() if spec.adapter in request.adapters}
        return [call_of(true.probe) for true in spread(reference.effects(own), LATER_CALLS)]

    return LaterAdapters(request.model, request.later, calls=calls, directory=request.out / "later")


def _needs_ranking(row: AblationRow) -> bool:
    return row.build.get("anchor") == MOST_SENSITIVE


def _resolved(row: AblationRow, measured: Mapping[str, AblationResult]) -> AblationRow:
    """The row with the anchor's name in it, where it asks for the most sensitive adapter."""
    if not _needs_ranking(row):
        return row
    scores: Mapping[str, float] = measured[BASELINE].profile["qss"]
    return replace(row, build={**row.build, "anchor": max(scores, key=lambda name: scores[name])})
