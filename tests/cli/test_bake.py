"""`quad bake` and `quad export` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quad.cli.main import app


def test_a_baked_bundle_is_told_and_inspected(tiny_bundle: Path, tmp_path: Path) -> None:
    call = ["bake", str(tiny_bundle), "--adapter", "sketch:0.5", "--weight-bits", "16", "-o", str(tmp_path / "baked"), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["adapters"], told["layers"], sorted(told["left_out"])) == ({"sketch": 0.5}, 2, ["removal", "transform"])
    seen = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "baked"), "--json"]).stdout)
    assert (seen["slots"], seen["adapters"], seen["details"]["merged"]) == (0, {}, {"sketch": 0.5})
    picture = CliRunner().invoke(app, ["run", str(tmp_path / "baked"), "--task", "text-to-image", "-o", str(tmp_path / "a.png")])
    assert picture.exit_code == 0, picture.output


def test_an_exported_bundle_names_its_files(tiny_bundle: Path, tmp_path: Path) -> None:
    call = ["export", str(tiny_bundle), "--format", "onnx-adapter", "-o", str(tmp_path / "ort"), "--json"]
    told = json.loads(CliRunner().invoke(app, call).stdout)
    assert all((tmp_path / "ort" / name).is_file() for name in told["files"])
    assert told["session_config"] == {"session.disable_quant_qdq": "1"}


@pytest.mark.parametrize(
    "call",
    [
        ["bake", "BUNDLE", "-o", "OUT"],
        ["bake", "BUNDLE", "--adapter", "sketch", "--weight-bits", "4", "-o", "OUT"],
        ["export", "BUNDLE", "--format", "safetensors", "-o", "OUT"],
        ["export", "BUNDLE", "--format", "onnx-adapter", "--encodings", "OUT", "-o", "OUT"],
    ],
)
def test_a_call_that_means_nothing_is_told_as_one(tiny_bundle: Path, tmp_path: Path, call: list[str]) -> None:
    places = {"BUNDLE": str(tiny_bundle), "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in call])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()
