"""Full precision's pictures from a process of their own: the same ones, of the tasks that are run the same way, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from quad.evaluate.figures.full_pictures import Making, full_pictures, making, write_pictures
from quad.evaluate.figures.reference import Reference

N = 2


def test_they_are_those_that_this_process_makes(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    files = {"removal": adapter_files["removal"]}
    reference = Reference(model_dir, files)
    with making(model_dir, files, N, tmp_path) as at_work:
        made = at_work.wait(reference.tasks)
    assert set(made) == {"text-to-image", "removal"}  # of adapters that are there
    expected = full_pictures(reference, "removal", N, reference.tasks["removal"])
    assert np.abs(made["removal"].pictures.astype(int) - expected.pictures).max() <= 1  # conftest lets torch have two threads here
    assert not np.array_equal(made["removal"].pictures, made["removal"].control)


def test_a_task_that_is_run_otherwise_is_left_out(model_dir: Path, tmp_path: Path) -> None:
    write_pictures(model_dir, {}, N, tmp_path)
    tasks = Reference(model_dir, {}).tasks
    other = msgspec.structs.replace(tasks["text-to-image"], guidance=7.0)
    done = subprocess.Popen([sys.executable, "-c", ""])
    assert set(Making(done, tmp_path).wait({**tasks, "text-to-image": other})) == set()
    assert set(Making(done, tmp_path).wait(tasks)) == {"text-to-image"}


def test_where_the_process_fails_there_are_none(model_dir: Path, tmp_path: Path) -> None:
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert Making(failed, tmp_path).wait(Reference(model_dir, {}).tasks) == {}


def test_a_process_that_is_not_waited_for_is_gone(model_dir: Path, tmp_path: Path) -> None:
    with making(model_dir, {}, N, tmp_path) as at_work:
        pass
    assert at_work.process.returncode is not None
