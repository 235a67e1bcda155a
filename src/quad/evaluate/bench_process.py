"""The bench in a process of its own, so that the memory it reads is the runtime's and not that of who asks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from quad.core.errors import BackendError, QuadError, RefusedError, UsageError, mismatch
from quad.evaluate.bench import BenchOptions

# Exit code of the child -> the error that its last line becomes here.
ERRORS: dict[int, type[QuadError]] = {1: QuadError, 2: UsageError, 3: RefusedError}


def measure(options: BenchOptions, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """What `quad.evaluate.bench.bench` gives, measured in a started process.

    Args:
        progress: called with the stage that begins and the share done.

    Raises:
        QuadError: what the bench raised, with its exit code.
        BackendError: the process ended otherwise.
    """
    command = [sys.executable, "-m", "quad.evaluate.bench", str(options.path), "--progress", "--engine", options.engine]
    command += ["--threads", str(options.threads or 0), "--repeats", str(options.repeats)]
    command += [word for task in options.tasks for word in ("--task", task)]
    last = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
        with subprocess.Popen(command, stdout=answer, stderr=subprocess.PIPE, text=True) as child:
            for line in child.stderr or ():
                last = line.strip() if not _shown(line, progress) and line.strip() else last
        if child.returncode:
            raise _error(child.returncode, last)
        answer.seek(0)
        found: dict[str, Any] = json.loads(answer.read())
    return found


def _shown(line: str, progress: Callable[[str, float], None]) -> bool:
    """Whether a line was a stage that began."""
    try:
        told = json.loads(line)
        progress(str(told["stage"]), float(told["share"]))
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _error(code: int, last: str) -> QuadError:
    if code in ERRORS and last:
        return ERRORS[code](last)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return BackendError(mismatch("bench", "a process that ends well", how, "free memory, or ask for one --task"))
