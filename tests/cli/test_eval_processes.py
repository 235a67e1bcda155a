"""`quad eval` and `quad ablate` of two processes give what one does; an error of all of them is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import quad
from tests.evaluate.conftest import model_dir as model_dir

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def launched(processes: int, place: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, as often as it is to run at once."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(Path(next(iter(quad.__path__))).parent), str(ROOT))),
        "HF_HOME": str(place / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(3 - processes),
    }
    command = [sys.executable, "-m", "tests.launcher", str(processes), "quad", *map(str, words)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=1600, check=False)


def result(processes: int, place: Path, *words: str | Path) -> dict[str, Any]:
    done = launched(processes, place, *words, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\n") == 1  # one object: the others said nothing
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def adapters(model: Path) -> list[str]:
    files = sorted((model / "adapters").glob("*/*.safetensors"))
    return [word for file in files for word in ("--adapter", f"{file.parent.name}={file}")]


def files(directory: Path, *kinds: str) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for kind in kinds for path in directory.rglob(kind)}


def test_two_processes_evaluate_what_one_does(model_dir: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "phone"
    result(2, tmp_path, "build", model_dir, "-o", bundle, *adapters(model_dir))
    words = ("eval", bundle, "--against", model_dir, "--n", "18")  # more than one batch of the reference
    one, two = (result(number, tmp_path, *words, "-o", tmp_path / str(number)) for number in (1, 2))
    assert one == two
    written = files(tmp_path / "1", "*.json", "*.png")
    assert written == files(tmp_path / "2", "*.json", "*.png")
    assert len(written) > 6 * 18
    assert (tmp_path / "2" / "report.html").is_file()


def test_two_processes_ablate_what_one_does(model_dir: Path, tmp_path: Path) -> None:
    def figures(facts: dict[str, Any]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name not in ("seconds", "unet_ms")} for row in facts["rows"]]

    words = ("ablate", model_dir, "--rows", "lora-8,profile-anchor", "--n", "2")
    one, two = (result(number, tmp_path, *words, "-o", tmp_path / str(number)) for number in (1, 2))
    assert figures(one) == figures(two)
    assert [row["name"] for row in two["rows"]] == ["w8a16", "lora-8", "profile-anchor"]
    assert files(tmp_path / "1", "*.png") == files(tmp_path / "2", "*.png") != {}
    assert two["cross_table"] == one["cross_table"]
    assert list(tmp_path.glob("2/.bundle-*")) == []


def test_an_error_of_all_processes_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    done = launched(2, tmp_path, "eval", tmp_path / "none", "--against", model_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("quad: ") == 1
