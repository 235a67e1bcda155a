"""The bench in a process of its own, so that the memory it reads is the runtime's and not that of who asks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TypeVar

import msgspec

from quad.core.errors import BackendError, QuadError, RefusedError, UsageError, mismatch
from quad.core.progress import Progress
from quad.evaluate.bench.bench import BenchOptions
from quad.evaluate.bench.results import BenchResult, MemoryPlanCosts, StageBegins
from quad.runtime.engines.graph import PLANS

T = TypeVar("T")
# Exit code of the child -> the error that its last line becomes here.
ERRORS: dict[int, type[QuadError]] = {1: QuadError, 2: UsageError, 3: RefusedError}

_MEMORY = 0.95  # share of the whole that is done when the memory plans begin


def measure(options: BenchOptions, progress: Progress) -> BenchResult:
    """The result of `quad.evaluate.bench.bench.bench`, measured in a started process; and the cost of each memory plan, each in one more.

    Args:
        progress: called with the stage that begins and the share done.

    Raises:
        QuadError: as the bench raised, with its exit code.
        BackendError: the process ended otherwise.
    """
    words = ["quad.evaluate.bench.bench", str(options.path), "--progress", "--repeats", str(options.repeats)]
    words += [word for task in options.tasks for word in ("--task", task)]
    measured = _child(BenchResult, words, options, progress)
    memory = {}
    for i, plan in enumerate(PLANS):
        progress(f"memory {plan}", _MEMORY + (1 - _MEMORY) * i / len(PLANS))
        words = ["quad.evaluate.bench.memory_plans", str(options.path), "--memory", plan]
        memory[plan] = _child(MemoryPlanCosts, words, options, progress)
    return msgspec.structs.replace(measured, memory=memory)


def _child(kind: type[T], words: list[str], options: BenchOptions, progress: Progress) -> T:
    """The object that a module prints as JSON."""
    command = [
        sys.executable,
        "-m",
        *words,
        "--engine",
        options.engine,
        "--float",
        options.float_type,
        "--threads",
        str(options.threads or 0),
    ]
    last = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True) as child:
            for line in child.stderr or ():
                last = line.strip() if not _shown(line, progress) and line.strip() else last
        if child.returncode:
            raise _error(child.returncode, last)
        output.seek(0)
        return msgspec.json.decode(output.read(), type=kind)


def _shown(line: str, progress: Progress) -> bool:
    """Whether a line was a stage that began."""
    try:
        stage = msgspec.json.decode(line, type=StageBegins)
    except msgspec.MsgspecError:
        return False
    progress(stage.stage, stage.share)
    return True


def _error(code: int, last: str) -> QuadError:
    if code in ERRORS and last:
        return ERRORS[code](last)
    end = f"signal {-code}" if code < 0 else f"exit code {code}"
    return BackendError(mismatch("bench", "a process that ends well", end, "free memory, or ask for one --task"))
