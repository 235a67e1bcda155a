"""The bench in a process of its own, so that the memory it reads is the runtime's and not that of who asks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from quad.core.errors import BackendError, QuadError, RefusedError, UsageError, mismatch
from quad.evaluate.bench.bench import BenchOptions
from quad.runtime.engines.graph import PLANS

# Exit code of the child -> the error that its last line becomes here.
ERRORS: dict[int, type[QuadError]] = {1: QuadError, 2: UsageError, 3: RefusedError}

_MEMORY = 0.95  # share of the whole that is done when the memory plans begin


def measure(options: BenchOptions, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """What `quad.evaluate.bench.bench.bench` gives, measured in a started process; and `memory`, what each plan takes, each in one more.

    Args:
        progress: called with the stage that begins and the share done.

    Raises:
        QuadError: what the bench raised, with its exit code.
        BackendError: the process ended otherwise.
    """
    words = ["quad.evaluate.bench.bench", str(options.path), "--progress", "--repeats", str(options.repeats)]
    found = _child([*words, *(word for task in options.tasks for word in ("--task", task))], options, progress)
    found["memory"] = {}
    for i, plan in enumerate(PLANS):
        progress(f"memory {plan}", _MEMORY + (1 - _MEMORY) * i / len(PLANS))
        words = ["quad.evaluate.bench.memory_plans", str(options.path), "--memory", plan]
        found["memory"][plan] = _child(words, options, progress)
    return found


def _child(words: list[str], options: BenchOptions, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """What a module prints as JSON."""
    command = [sys.executable, "-m", *words, "--engine", options.engine, "--threads", str(options.threads or 0)]
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
