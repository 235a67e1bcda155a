"""Two processes at one build: one makes what the others read, and progress that never goes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quad
from quad.build.processes import is_main, once
from quad.core.progress import StageClock, with_progress

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
