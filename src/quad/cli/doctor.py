"""`quad doctor`: what this machine has, what each target needs, and whether a bundle runs here; one line each."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from quad import __version__
from quad.cli.extras import check_build, check_delivery, check_serve
from quad.cli.show import Json, result, size
from quad.core.errors import CompatibilityError, QuadError, one_line

if TYPE_CHECKING:
    from quad.runtime.bundle import Bundle
    from quad.runtime.machine import EngineState

State = Literal["ok", "missing", "note", "fails"]
OptionalBundle = Annotated[
    Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle that this machine shall run.", show_default=False)
]
_INTEGERS = "mixed:80 or w8a8 are the fast ones"
_FAST = {"cpu": _INTEGERS, "openvino": _INTEGERS, "litert": "dynamic-w8 is the fast one"}  # target that any CPU runs -> its fast precisions
_EXTRAS = {"build": check_build, "delivery": check_delivery, "serve": check_serve}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the answer.

    Args:
        subject: of what: `cpu`, `engine ort`, `target qnn-htp`, `bundle engine`, ...
        state: `ok`; `missing`, not needed by everyone; `note`, slower or otherwise than one may think; `fails`, the bundle does not run.
        text: what was seen, and what to do where something is missing.
    """

    subject: str
    state: State
    text: str


def doctor(bundle: OptionalBundle = None, as_json: Json = False) -> None:
    """Show what this machine has and lacks; with BUNDLE, also whether it runs here. Exit code 3 where it does not."""
    from quad.runtime.machine import engine_states

    engines = engine_states()
    extras = _extras()
    findings = [*_machine(), *map(_engine, engines), *extras.values(), *_targets(engines, extras["build"])]
    if bundle is not None:
        from quad.runtime import open_bundle

        findings += bundle_findings(open_bundle(bundle), engines)
    result({"findings": findings, "ok": not _fails(findings)}, as_json, _lines(findings))
    if failed := _fails(findings):
        raise CompatibilityError(f"{bundle}: does not run on this machine; {failed[0].subject}: {failed[0].text}")


def _fails(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "fails"]


def _machine() -> list[Finding]:
    from quad.runtime.engines.engine import default_threads
    from quad.runtime.engines.processor import products_saturate
    from quad.runtime.machine import cpu_features, cpu_model, memory

    held, features = memory(), cpu_features()
    names = "not listed by this system" if features is None else " ".join(features) or "none of those that quad asks for"
    cpu = Finding(subject="cpu", state="ok", text=f"{cpu_model()}, {default_threads()} usable cores, {names}")
    ram = "not said by this system" if held.total is None else f"{size(held.total)}, {size(held.available or 0)} free"
    lines = [
        Finding(subject="quad", state="ok", text=f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        cpu,
        Finding(subject="memory", state="ok", text=ram),
    ]
    if products_saturate():
        text = "no VNNI: 8-bit products saturate in OpenVINO, which takes float for them; ONNX Runtime is right, and slower"
        lines.append(Finding(subject="cpu", state="note", text=text))
    return lines


def _engine(engine: EngineState) -> Finding:
    if engine.lack is None:
        return Finding(subject=f"engine {engine.name}", state="ok", text=engine.version or "there, of a version that is not said")
    return Finding(subject=f"engine {engine.name}", state="missing", text=one_line(engine.lack))


def _extras() -> dict[str, Finding]:
    states = {}
    for extra, check in _EXTRAS.items():
        try:
            check(f"extra {extra}")
        except QuadError as error:
            states[extra] = Finding(subject=f"extra {extra}", state="missing", text=one_line(str(error)))
        else:
            states[extra] = Finding(subject=f"extra {extra}", state="ok", text="installed")
    return states


def _targets(engines: list[EngineState], build: Finding) -> list[Finding]:
    from quad.compile.targets import load_target, target_names

    lacks = {engine.name: engine.lack for engine in engines}
    lines = []
    for name in target_names():
        runners = load_target(name).engines
        able = [runner for runner in runners if lacks.get(runner) is None]
        runs = f"runs with {', '.join(able)}" if able else f"runs with none of the engines here, needs {' or '.join(runners)}"
        builds = "can be built here" if able and build.state == "ok" else "cannot be built here: needs its engine and the build extra"
        lines.append(Finding(subject=f"target {name}", state="ok" if able else "missing", text=f"{runs}; {builds}"))
    return lines


def bundle_findings(bundle: Bundle, engines: list[EngineState]) -> list[Finding]:
    """Whether a whole bundle runs on a machine with these engines."""
    manifest = bundle.manifest
    whole = f"{len(manifest.files)} files, every digest as listed"
    lines = [Finding(subject="bundle", state="ok", text=f"{bundle.root}, {manifest.target} {manifest.precision}, {whole}")]
    able = [engine.name for engine in engines if engine.lack is None and engine.name in manifest.engines]
    if able:
        text = f"{able[0]}, the first of {', '.join(manifest.engines)} that is here"
        lines.append(Finding(subject="bundle engine", state="ok", text=text))
    else:
        wanted = [engine for engine in engines if engine.name in manifest.engines]
        reason = one_line(wanted[0].lack or "") if wanted else f"none of {', '.join(manifest.engines)} is known to this version"
        lines.append(Finding(subject="bundle engine", state="fails", text=reason))
    return [*lines, *_bundle_memory(bundle), *_bundle_notes(bundle)]


def _bundle_memory(bundle: Bundle) -> list[Finding]:
    from quad.runtime.machine import memory, plan_bytes

    free = memory().available
    sizes = plan_bytes(bundle.manifest)
    lines = []
    for plan, n_bytes in sizes.items():
        fits = free is None or n_bytes < free
        state: State = "ok" if fits else "fails" if plan == min(sizes, key=lambda name: sizes[name]) else "note"
        ending = "" if free is None else f", {size(free)} free" if fits else f", more than the {size(free)} that are free"
        lines.append(Finding(subject=f"bundle memory {plan}", state=state, text=f"graphs of {size(n_bytes)} at once{ending}"))
    return lines


def _bundle_notes(bundle: Bundle) -> list[Finding]:
    manifest, lines = bundle.manifest, []
    if manifest.requires:
        needs = ", ".join(f"{name} {value}" for name, value in dict(manifest.requires).items())
        lines.append(Finding(subject="bundle chip", state="note", text=f"made for {needs}; on another machine it runs in the emulator"))
    fast = {
        "cpu": "mixed:80 or w8a8 are the fast ones",
        "openvino": "mixed:80 or w8a8 are the fast ones",
        "litert": "dynamic-w8 is the fast one",
    }
    if manifest.target in fast and manifest.precision == "w8a16":
        text = f"w8a16 proves a chip's numbers; a CPU has no kernels for 16-bit activations: {_FAST[manifest.target]} here"
        lines.append(Finding(subject="bundle speed", state="note", text=text))
    return lines


def _lines(findings: list[Finding]) -> list[str]:
    width = max(len(finding.subject) for finding in findings)
    return [f"{finding.state:7} {finding.subject:{width}}  {finding.text}" for finding in findings]
