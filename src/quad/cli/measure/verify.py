"""`quad verify`: whether engines on this machine compute what a bundle says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quad.cli.shared_options import BundleDir, MemoryPlan, Threads
from quad.cli.show import Json, result, stage_bar
from quad.core.errors import BackendError, QuadError, one_line

if TYPE_CHECKING:
    from quad.core.progress import Progress
    from quad.runtime.conformance import Check

Engines = Annotated[
    list[str] | None,
    typer.Option("--engine", help="An engine to try; repeat it. By default all of the bundle's that are installed.", metavar="NAME",
                 show_default=False),
]  # fmt: skip


def verify(
    bundle: BundleDir, engine: Engines = None, threads: Threads = None, memory: MemoryPlan = "keep-all", as_json: Json = False
) -> None:
    """Run a bundle's conformance vectors on each engine. Exit code 0 where all answers are near enough, 1 where one is not."""
    from quad.runtime.bundle import open_bundle

    manifest = open_bundle(bundle, verify=False).manifest  # every pipeline compares all digests
    checks: dict[str, list[Check]] = {}
    left_out: dict[str, str] = {}
    for name in engine or manifest.engines:
        with stage_bar() as progress:
            try:
                checks[name] = _checks(bundle, name, threads, memory, progress)
            except BackendError as error:
                if engine:
                    raise
                left_out[name] = one_line(str(error))
    failed = [f"{name}: {check.kind} {check.name}" for name, of_engine in checks.items() for check in of_engine if not check.passes]
    rows = {name: [_row(check) for check in of_engine] for name, of_engine in checks.items()}
    result({"ok": not failed, "engines": rows, "left_out": left_out}, as_json, _lines(checks, left_out))
    if not checks:
        raise BackendError(f"{bundle}: none of its engines is installed; {'; '.join(left_out.values())}")
    if failed:
        raise QuadError(f"{bundle}: {len(failed)} answers are not the bundle's, {failed[0]} the first; do not use it on this machine")


def _checks(bundle: Any, engine: str, threads: int | None, memory: str, progress: Progress) -> list[Check]:
    from quad.runtime.conformance import read_vectors
    from quad.runtime.conformance import verify as run
    from quad.runtime.pipeline import QuadPipeline

    pipe = QuadPipeline.from_pretrained(bundle, engine=engine, threads=threads, memory=memory, float_type="f32")
    return run(pipe, read_vectors(pipe.bundle), progress)


def _row(check: Check) -> dict[str, Any]:
    return {
        "kind": check.kind,
        "name": check.name,
        "distance": check.distance if math.isfinite(check.distance) else None,
        "tolerance": check.tolerance,
        "ok": check.passes,
        "error": check.error,
    }


def _lines(checks: dict[str, list[Check]], left_out: dict[str, str]) -> list[str]:
    lines = []
    for engine, of_engine in checks.items():
        kinds = {check.kind: [other for other in of_engine if other.kind == check.kind] for check in of_engine}
        lines += [f"{engine}  {_summary(kind, several)}" for kind, several in kinds.items()]
        lines += [f"{engine}  FAILS {check.kind} {check.name}: {_reason(check)}" for check in of_engine if not check.passes]
    return lines + [f"{name}  not tried: {reason}" for name, reason in left_out.items()]


def _summary(kind: str, checks: list[Check]) -> str:
    """How many pass, and the one that comes nearest to its tolerance."""
    worst = max(checks, key=lambda check: check.distance / check.tolerance if check.tolerance else check.distance)
    passed = sum(check.passes for check in checks)
    return f"{kind:8} {passed} of {len(checks)}, largest distance {worst.distance:.2g} of {worst.tolerance:.2g} ({worst.name})"


def _reason(check: Check) -> str:
    return check.error or f"{check.distance:.3g} away, {check.tolerance:.3g} at most"
