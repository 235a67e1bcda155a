"""Full precision's pictures of held-out samples, made by a process of its own while a bundle is built: they need nothing of it.

The process yields to others, so it takes the cores that a build leaves idle. It leaves arrays of NumPy, and how each task was run.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.build.fixed_threads import fixed_threads
from quad.core.manifest import TaskSpec
from quad.core.storage.files import write_bytes
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import Reference
from quad.zoo.samples import with_samples

CONTROL_SEED = 10**6
_NICE, _SPECS = 10, "tasks.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FullPictures:
    """Of one task, uint8 `(N, S, S, 3)`: from the noise that the bundle begins with too, and from other."""

    pictures: NDArray[np.uint8]
    control: NDArray[np.uint8]


def full_pictures(reference: Reference, task: str, n: int, spec: TaskSpec) -> FullPictures:
    """Both, of the first `n` held-out samples."""
    samples = held_out(task, n, reference.picture_size.width)
    return FullPictures(*(reference.pictures(task, picture_requests(samples, seed), spec) for seed in (0, CONTROL_SEED)))


@dataclass(frozen=True)
class Making:
    """A process at work, and where it leaves its files."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait(self, tasks: Mapping[str, TaskSpec]) -> dict[str, FullPictures]:
        """The pictures of the tasks that were run as they are here, once the process is done; none where it failed."""
        if code := self.process.wait():
            _log.warning("full precision's pictures: the process ended with %d, they are made again", code)
            return {}
        made = msgspec.json.decode((self.folder / _SPECS).read_bytes(), type=dict[str, TaskSpec])
        same = [task for task, spec in tasks.items() if made.get(task) == spec]
        return {task: FullPictures(*(np.load(self.folder / f"{task}.{k}.npy", allow_pickle=False) for k in range(2))) for task in same}


@contextmanager
def making(model: Path, adapters: Mapping[str, Path], n: int, folder: Path) -> Iterator[Making]:
    """A process that makes the pictures of all of a model's tasks while the block runs; at its end the process is gone.

    Args:
        n: held-out samples a task.
        folder: for its files; it is there.
    """
    files = [word for name, file in adapters.items() for word in ("--adapter", f"{name}={file}")]
    command = [sys.executable, "-m", __name__, str(model), str(folder), "--n", str(n), *files]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield Making(process, folder)
        finally:
            process.kill()


def write_pictures(model: Path, adapters: Mapping[str, Path], n: int, folder: Path) -> None:
    """Make the pictures of every task whose adapter is there, and leave them in `folder`."""
    reference = Reference(model, adapters)
    tasks = {task: reference.tasks[task] for task in with_samples(reference.tasks)}
    specs = {task: spec for task, spec in tasks.items() if spec.adapter in (None, *adapters)}
    for task, spec in specs.items():
        made = full_pictures(reference, task, n, spec)
        for k, array in enumerate((made.pictures, made.control)):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write_bytes(folder / f"{task}.{k}.npy", buffer.getvalue())
    write_bytes(folder / _SPECS, msgspec.json.encode(specs))


def main(words: Sequence[str] | None = None) -> None:
    """Write the pictures, behind everybody else."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path, help="the model's directory")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--n", type=int, required=True, help="held-out samples a task")
    parser.add_argument("--adapter", action="append", default=[], help="NAME=FILE")
    options = parser.parse_args(words)
    os.nice(_NICE)
    adapters = {name: Path(file) for name, _, file in (word.partition("=") for word in options.adapter)}
    with fixed_threads():
        write_pictures(options.model, adapters, options.n, options.folder)


if __name__ == "__main__":
    main()
