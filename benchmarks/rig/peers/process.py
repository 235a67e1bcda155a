"""A peer in a process of its own, in an environment of its own that is made from its list of pinned packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from benchmarks.rig.peers.loop import ANSWER

from quad.core.digests import file_digest

LISTS = Path(__file__).parent
ROOT = Path(__file__).parents[3]
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class LeftOutError(Exception):
    """The peer cannot run here; its message says why."""


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(words, capture_output=True, text=True, check=False)


def environment(folder: Path, name: str, run: Run = run) -> Path:
    """The Python of an environment with a list's packages, made where it is not there yet or the list has changed.

    Raises:
        LeftOutError: a package cannot be installed here.
    """
    place, packages = folder / name, LISTS / f"{name}.txt"
    python, seal = place / "bin" / "python", place / "list.sha256"
    if seal.is_file() and seal.read_text(encoding="ascii") == file_digest(packages):
        return python
    for words in ((sys.executable, "-m", "venv", str(place)), (str(python), "-m", "pip", "install", "--quiet", "-r", str(packages))):
        done = run(words)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise LeftOutError(f"{packages.name} cannot be installed: {said[-1] if said else f'exit code {done.returncode}'}")
    seal.write_text(file_digest(packages), encoding="ascii")
    return python


class PeerProcess:
    """A worker's process, which runs when it is asked to.

    Args:
        words: the worker's module and its words.
        log: gets what the worker prints.

    Attributes:
        seconds: that loading took.

    Raises:
        LeftOutError: it ended while it loaded.
    """

    def __init__(self, python: Path, words: Sequence[str], log: Path, threads: int) -> None:
        paths = [str(ROOT), *([str(ROOT / "src")] if python == Path(sys.executable) else [])]
        variables = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._log, start = log, perf_counter()
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [str(python), "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True,
                env={**os.environ, **variables},
            )  # fmt: skip
        try:
            self._read()
        except LeftOutError:
            self._process.communicate()
            raise
        self.seconds = perf_counter() - start

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # it has ended already
            self._process.communicate("stop\n", timeout=30)
        self._process.kill()

    def ask(self, command: str) -> Any:
        """`step` (ms of each call), `switch` (ms or None), `memory` (peak bytes).

        Raises:
            LeftOutError: it failed or has ended.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise LeftOutError(str(answer["error"]))
        return answer["answer"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith(ANSWER)), None)
        if line is None:
            said = [text for text in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
            raise LeftOutError(f"its process ended: {said[-1] if said else 'nothing was said'}")
        answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
        return answer
