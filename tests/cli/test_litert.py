"""The command line on a bundle for LiteRT, whose graphs are hand-made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from quad.admit.sites import ObservedGraph
from quad.cli.main import app
from quad.core.chips import ACCEPTED, CPU, EMULATED, RUNS_ON_CPU
from quad.core.manifest import BundleManifest

RUNNER = CliRunner()
CHIPS = {"SM8750": EMULATED, "MT6993": ACCEPTED, CPU: RUNS_ON_CPU}


def _said(arguments: list[str], code: int = 0) -> str:
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == code, done.stderr
    return done.stderr if code else done.stdout


def test_inspect_says_of_each_chip_what_the_build_recorded(litert_bundle: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    root = Path(shutil.copytree(litert_bundle, tmp_path / "phone"))
    assert "chips" not in json.loads(_said(["inspect", str(root), "--json"]))["details"]
    kept = msgspec.json.decode((root / "bundle.json").read_bytes(), type=BundleManifest)
    rewrite(root, target="litert", engines=("litert",), components=kept.components, chips=CHIPS)
    assert json.loads(_said(["inspect", str(root), "--json"]))["details"]["chips"] == CHIPS
    shown = _said(["inspect", str(root)]).splitlines()
    assert "SM8750: compiled and run in emulation" in shown
    assert "MT6993: accepted by the plugin's front end, not compiled" in shown
    assert "any CPU: runs on LiteRT's CPU" in shown


def test_run_bench_and_doctor_take_it(litert_bundle: Path, tmp_path: Path) -> None:
    said = json.loads(_said(["run", str(litert_bundle), "--task", "text-to-image", "--prompt", "the car", "--engine", "litert", "--json",
                             "-o", str(tmp_path / "car.png")]))  # fmt: skip
    assert (tmp_path / "car.png").is_file()
    assert said["task"] == "text-to-image"
    findings = {finding["subject"]: finding for finding in json.loads(_said(["doctor", str(litert_bundle), "--json"]))["findings"]}
    assert findings["engine litert"]["state"] == findings["bundle engine"]["state"] == "ok"
    assert "dynamic-w8 is the fast one here" in findings["bundle speed"]["text"]


@pytest.mark.parametrize("engine", ["ort", "qnn"])
def test_another_engine_is_refused_in_one_line(engine: str, litert_bundle: Path, tmp_path: Path) -> None:
    said = _said(
        ["run", str(litert_bundle), "--task", "text-to-image", "--prompt", "the car", "--engine", engine, "-o", str(tmp_path / "x.png")], 3
    )
    assert said.startswith(f"quad: engine: expected litert, which this bundle was built for, found {engine}; leave the engine out")
    assert not (tmp_path / "x.png").exists()


def test_activations_of_its_graph_are_told_unread(litert_bundle: Path) -> None:
    graph = ObservedGraph(litert_bundle / "unet/model.tflite")
    assert graph.unread == "the U-Net is a .tflite file, of which ONNX Runtime reads none"
    assert graph.uses([], {}) == {}
