"""`quad serve` as it is called: what is wrong is told before anything is opened. How it serves is in tests/serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quad.cli.main import app
from quad.serve.app import OPERATIONS
from quad.serve.operations.openapi import document

RUNNER = CliRunner()


def test_the_document_is_printed_without_a_bundle() -> None:
    done = RUNNER.invoke(app, ["serve", "--openapi"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(json.dumps(document(OPERATIONS)))


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "expected a bundle, found none"),
        (["phone", "--socket", "s", "--port", "0"], 2, "expected --socket or --port, found both"),
        (["phone", "--token-file", "t"], 2, "--token-file: expected --port with it"),
        (["phone", "--port", "70000"], 2, "--port"),
        (["phone", "--memory", "most"], 2, "most"),
        (["phone", "--embedding", "cat="], 2, "--embedding: expected NAME=FILE"),
        (["nowhere", "--port", "0"], 1, "nowhere"),
        (["nowhere", "--socket", "s"], 1, "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    done = RUNNER.invoke(app, ["serve", *options])
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
