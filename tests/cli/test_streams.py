"""Standard output that takes nothing is one line and exit code 1, whatever the verb; standard error that takes nothing stops no work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")  # a device that is always a full disk
SAYS = "quad: standard output: cannot write (disk full); the result is not shown, what was done before stays\n"
QUAD = f"{sys.executable} -m quad"
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")
# Every call of a list in one process: standard output is full anew each time.
_CALLS = """
import os, sys
from quad.cli.main import app
for words in {calls}:
    os.dup2(os.open({full!r}, os.O_WRONLY), 1)
    sys.stdout = open(1, "w", closefd=False)
    try:
        app(words)
    except SystemExit as end:
        print(words[0], end.code, file=sys.stderr)
"""


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False)


@needs_full
def test_every_kind_of_result_on_a_full_disk(tiny_bundle: Path, tmp_path: Path) -> None:
    """Of verbs and of the command line's own: what is buffered and what is not, lines, JSON, help."""
    run = ["run", str(tiny_bundle), "--task", "text-to-image", "--prompt", "it", "-o", str(tmp_path / "a.png")]
    calls = [["inspect", str(tiny_bundle)], ["inspect", str(tiny_bundle), "--json"], run, ["list", str(tiny_bundle)],
             ["serve", "--openapi"], ["--version"], ["--help"], ["run", "--help"]]  # fmt: skip
    script = _CALLS.format(calls=calls, full=str(FULL))
    ended = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=300, check=True)
    assert ended.stderr == "".join(f"{SAYS}{words[0]} 1\n" for words in calls)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@needs_full
def test_the_interpreter_adds_nothing_as_it_ends(tiny_bundle: Path) -> None:
    ended = shell(f"{QUAD} inspect {tiny_bundle} > {FULL}")
    assert (ended.returncode, ended.stderr) == (1, SAYS)


def test_a_closed_standard_output(tiny_bundle: Path) -> None:
    ended = shell(f"{QUAD} inspect {tiny_bundle} >&-")
    assert ended.returncode == 1
    assert ended.stderr.startswith("quad: standard output: cannot write (Bad file descriptor)")
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_has_gone_is_no_fault(tiny_bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "quad", "inspect", str(tiny_bundle)]
    ended = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("place", [pytest.param(f"2> {FULL}", marks=needs_full), "2>&-"], ids=["full", "closed"])
def test_standard_error_that_takes_nothing_stops_no_work(tiny_bundle: Path, tmp_path: Path, place: str) -> None:
    ended = shell(f"{QUAD} -vv run {tiny_bundle} --task text-to-image --prompt ghost -o {tmp_path}/a.png {place} <&-")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"{tmp_path}/a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert shell(f"{QUAD} inspect {tmp_path}/nowhere {place}").returncode == 1
