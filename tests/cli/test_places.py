"""A place that nothing can be written to is refused before the work for it begins, by every verb that writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from quad.cli.main import app

CALLS = [
    ["build", "toyland", "-o", "OUT"],
    ["build", "toyland", "-o", "FREE", "--dump-passes", "OUT"],
    ["build", "toyland", "-o", "FREE", "--target", "qnn-htp", "--encodings", "OUT"],
    ["adapt", "no bundle", "ink=no-lora", "-o", "OUT"],
    ["bake", "no bundle", "--adapter", "ink", "-o", "OUT"],
    ["export", "no bundle", "--format", "onnx-adapter", "-o", "OUT"],
    ["export", "no bundle", "--format", "qairt", "-o", "OUT"],
    ["studio", "no bundle", "--export", "OUT"],
    ["run", "no bundle", "--task", "removal", "-o", "OUT.png"],
    ["eval", "no bundle", "--against", "no model", "-o", "OUT"],
    ["bench", "no bundle", "-o", "OUT"],
    ["ablate", "no model", "-o", "OUT"],
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[-2]}")
def test_a_place_is_tried_before_the_work(tmp_path: Path, call: list[str]) -> None:
    """In a directory that is a link to nothing: neither a file nor the directory itself can be made, whoever asks."""
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    words = [word.replace("OUT", str(tmp_path / "gone" / "x")).replace("FREE", str(tmp_path / "free")) for word in call]
    done = CliRunner().invoke(app, words)
    lines = done.stderr.splitlines()
    assert (done.exit_code, done.stdout, len(lines)) == (1, "", 1), lines
    assert lines[0].startswith(f"quad: {tmp_path / 'gone' / 'x'}")
    assert "cannot write (" in lines[0]
    assert lines[0].endswith("; nothing was written, choose another place")
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


@pytest.mark.parametrize("call", [["eval", "no bundle", "--against", "no model"], ["ablate", "no model"]])
def test_a_report_is_not_made_where_its_files_cannot_be(tmp_path: Path, call: list[str]) -> None:
    (tmp_path / "pictures").write_bytes(b"")
    done = CliRunner().invoke(app, [*call, "-o", str(tmp_path)])
    assert "cannot write (Not a directory); nothing was written, choose another place" in done.stderr
    (tmp_path / "report.html").mkdir()
    done = CliRunner().invoke(app, [*call, "-o", str(tmp_path)])
    assert "report.html: expected a new name or a file to replace, found a directory" in done.stderr


def test_names_of_previews_fit_too(tmp_path: Path) -> None:
    call = ["run", "no bundle", "--task", "removal", "-o", str(tmp_path / f"{'x' * 245}.png")]
    assert "expected a bundle directory" in CliRunner().invoke(app, call).stderr
    assert "cannot write (File name too long)" in CliRunner().invoke(app, [*call, "--preview-every", "1"]).stderr
