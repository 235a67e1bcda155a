"""`quad doctor`: what it says is what the machine and the bundle say."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from quad.cli.doctor import Finding, bundle_findings
from quad.cli.main import app
from quad.core.errors import BackendError
from quad.core.manifest import FileEntry, GraphFiles
from quad.runtime import machine, open_bundle
from quad.runtime.engines import engine as engines
from quad.runtime.machine import EngineState, MachineMemory, cpu_features, cpu_model, engine_states, memory, plan_bytes

RUNNER = CliRunner()
HERE = [EngineState(name="ort", version="1", lack=None)]
NOWHERE = [EngineState(name="ort", version=None, lack="engine ort: expected the package onnxruntime, found none; install it")]
X86 = "processor : 0\nmodel name\t: Some Core 9\nflags\t\t: fpu avx2 avx512_vnni amx_int8\nprocessor : 1\nflags : fpu\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm\nHardware : Some SoC\n"


def _by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


@pytest.mark.parametrize(
    ("text", "name", "features"), [(X86, "Some Core 9", ("avx2", "avx512_vnni", "amx_int8")), (ARM, "Some SoC", ("asimddp", "i8mm"))]
)
def test_the_processor_by_its_own_words(text: str, name: str, features: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert (cpu_model(tmp_path / "cpuinfo"), cpu_features(tmp_path / "cpuinfo")) == (name, features)


def test_memory_by_its_own_words_and_unknown_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:    2048 kB\nMemAvailable:   1024 kB\n")
    assert memory(tmp_path / "meminfo") == MachineMemory(total=2048 * 1024, available=1024 * 1024)
    assert memory(tmp_path / "none") == MachineMemory(total=None, available=None)
    assert cpu_features(tmp_path / "none") is None


def test_an_engine_has_its_version_or_its_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    (state,) = engine_states(["ort"])
    assert state == EngineState(name="ort", version=version("onnxruntime"), lack=None)

    def missing(*_: Any) -> Any:
        raise BackendError("engine ort: expected the package onnxruntime, found none")

    monkeypatch.setattr(machine, "open_engine", missing)
    (state,) = engine_states(["ort"])
    assert "onnxruntime" in str(state.lack)


def test_without_a_bundle_every_engine_and_target_has_its_line() -> None:
    done = RUNNER.invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    subjects = {finding["subject"] for finding in answer["findings"]}
    assert {f"engine {name}" for name in engines.ENGINES} | {"cpu", "memory", "extra build", "target cpu", "target qnn-htp"} <= subjects


def test_a_bundle_that_runs_here(tiny_bundle: Path) -> None:
    done = RUNNER.invoke(app, ["doctor", str(tiny_bundle)])
    assert done.exit_code == 0, done.stderr
    assert "bundle engine" in done.stdout
    assert "ort, the first of ort" in done.stdout


def test_a_bundle_whose_engine_is_missing_fails_with_the_reason(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = _by_subject(bundle_findings(open_bundle(tiny_bundle), NOWHERE))
    assert findings["bundle engine"].state == "fails"
    assert "install it" in findings["bundle engine"].text
    monkeypatch.setattr(machine, "engine_states", lambda: NOWHERE)
    done = RUNNER.invoke(app, ["doctor", str(tiny_bundle), "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["ok"] is False
    assert "does not run on this machine" in done.stderr


def test_memory_plans_hold_what_they_keep_and_fail_only_where_the_least_does_not_fit(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(tiny_bundle)
    sizes = plan_bytes(bundle.manifest)
    graphs = machine.graph_bytes(bundle.manifest)
    assert sizes["keep-all"] == sum(graphs.values())
    assert sizes["minimal"] == max(graphs.values()) <= sizes["balanced"] <= sizes["keep-all"]
    monkeypatch.setattr(machine, "memory", lambda: MachineMemory(total=10**9, available=sizes["minimal"] + 1))
    states = {name: finding.state for name, finding in _by_subject(bundle_findings(bundle, HERE)).items()}
    assert (states["bundle memory minimal"], states["bundle memory keep-all"]) == ("ok", "note")
    monkeypatch.setattr(machine, "memory", lambda: MachineMemory(total=10**9, available=sizes["minimal"] - 1))
    states = {name: finding.state for name, finding in _by_subject(bundle_findings(bundle, HERE)).items()}
    assert states["bundle memory minimal"] == "fails"


def test_keep_all_holds_the_graphs_of_all_sizes_each_with_its_weights(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    unet = manifest.components["unet"]
    further, shared = FileEntry("", 1000), FileEntry("", 50_000)
    sized = msgspec.structs.replace(
        unet, data_files=("unet/weights",), sizes={"16x32": GraphFiles("unet/model.16x32.onnx", ("unet/weights",))}
    )
    files = {**manifest.files, "unet/weights": shared, "unet/model.16x32.onnx": further}
    several = msgspec.structs.replace(manifest, files=files, components={**manifest.components, "unet": sized})
    before, after = plan_bytes(manifest), plan_bytes(several)
    assert after["keep-all"] - before["keep-all"] == 2 * 50_000 + machine.graph_bytes(manifest)["unet"]
    assert after["balanced"] - before["balanced"] == 50_000


def test_a_chip_and_slow_numbers_are_noted(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, target="cpu", precision="w8a16", requires={"soc": "SM8650"})
    findings = _by_subject(bundle_findings(replace(bundle, manifest=manifest), HERE))
    assert "SM8650" in findings["bundle chip"].text
    assert findings["bundle speed"].state == "note"
