"""`quad bench` end to end on a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quad.cli.main import app

RUNNER = CliRunner()
FAST = ("--engine", "ort", "--threads", "1", "--repeats", "1", "--task", "removal")


def test_json_is_one_line_and_the_files_say_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench"
    done = RUNNER.invoke(app, ["bench", str(tiny_bundle), *FAST, "-o", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert {"engine", "components", "end_to_end_ms", "switch", "rom_bytes", "peak_ram_bytes"} <= set(found)
    assert list(found["end_to_end_ms"]) == ["removal"]
    assert (found["engine"], found["threads"], found["machine"]["threads"]) == ("ort", 1, 1)
    assert json.loads((out / "bench.json").read_text(encoding="utf-8")) == found
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.html"}
    assert "switch" in done.stderr


def test_people_get_the_papers_table(tiny_bundle: Path) -> None:
    done = RUNNER.invoke(app, ["bench", str(tiny_bundle), *FAST])
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Tasks (the paper's tables 2 and 3)"
    assert lines[1].split() == ["removal"]
    assert any(line.split() == ["Sampler", "DDIM"] for line in lines)
    assert lines[-1].count("1 threads") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 1, "quad: nowhere: expected a bundle directory"),
        (["{bundle}", "--task", "paint"], 2, "--task: expected one of removal, sketch, text-to-image, transform, found 'paint'"),
        (["{bundle}", "--engine", "tpu"], 2, "engine: expected auto or one of litert, openvino, ort, qnn, found 'tpu'"),
        (["{bundle}", "--engine", "qnn"], 3, "engine: expected ort or openvino, which this bundle was built for, found qnn"),
        (["{bundle}", "--threads", "0"], 2, "Invalid value for '--threads'"),
        (["{bundle}", "-o", "{bundle}/bundle.json"], 2, "-o: expected a directory to write, found a file"),
        (["{bundle}", "-o", "{bundle}/bundle.json/report"], 2, "-o: expected a directory to write, found a file"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(arguments: list[str], code: int, says: str, tiny_bundle: Path) -> None:
    done = RUNNER.invoke(app, ["bench", *(word.replace("{bundle}", str(tiny_bundle)) for word in arguments)])
    assert done.exit_code == code
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.strip().split(" ")[0].endswith("%")]
    assert len(lines) == 1
    assert says in lines[0]
