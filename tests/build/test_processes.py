"""Two processes at one build: both compute, one writes and speaks; what is read afterwards is what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import quad
from quad.build.processes import is_main, once
from quad.core.progress import StageClock, with_progress
from quad.runtime.bundle import open_bundle

# `--multi_gpu` is the launcher's word for several processes, on a CPU too. Port 0 is any free one.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0",
          "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "quad"]  # fmt: skip


def test_alone_everything_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert is_main()
    assert once(lambda: "made", lambda: "read") == "made"


def test_the_second_process_is_not_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not is_main()


@pytest.mark.timeout(300)
def test_a_build_of_two_processes_is_one_bundle(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "phone"
    adapters = [part for name, file in adapter_files.items() for part in ("--adapter", f"{name}={file}")]
    command = [sys.executable, *LAUNCH, "build", str(model_dir), *adapters, "-o", str(out), "--distill-steps", "2", "--json"]
    source = Path(next(iter(quad.__path__))).parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout)  # one object: the other process said nothing
    assert {name: entry["steps"] for name, entry in facts["alignment"].items()} == dict.fromkeys(adapter_files, 2)
    assert set(open_bundle(out).manifest.adapters) == set(adapter_files)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_progress_within_a_stage_goes_on_and_never_back() -> None:
    heard: list[tuple[str, float]] = []
    clock = StageClock(("first", "second"), lambda name, share: heard.append((name, share)))
    with clock("first"):
        pass
    with clock("second"):
        assert list(with_progress("abc", 3, "letter", clock.within("second"))) == ["a", "b", "c"]
    with clock("first"):
        pass
    assert [name for name, _ in heard] == ["first", "second", "letter 1 of 3", "letter 2 of 3", "letter 3 of 3", "first"]
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert shares[1] == 0.5
    assert max(shares) < 1.0


WAITING = """
import sys, time
from datetime import timedelta
from pathlib import Path
from accelerate import PartialState
from quad.build.processes import once
PartialState(cpu=True, timeout=timedelta(seconds=3))
made = Path(sys.argv[1])
def make():
    time.sleep(6)
    made.write_text("made")
    return "made"
print(once(make, made.read_text))
"""


@pytest.mark.timeout(120)
def test_others_wait_longer_than_the_library_does(tmp_path: Path) -> None:
    """Its own limit of 30 minutes, here 3 s, is less than a vendor's compiler and emulator may take."""
    (tmp_path / "wait.py").write_text(WAITING)
    launch = [*LAUNCH[:-2], str(tmp_path / "wait.py"), str(tmp_path / "made")]
    environment = {**os.environ, "PYTHONPATH": str(Path(next(iter(quad.__path__))).parent), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["made", "made"]
