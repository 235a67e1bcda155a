"""Two processes take the steps of one (`accelerate launch`), bit for bit, end together, and only the first of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import quad
from quad.quantize.distill.options import DistillOptions
from tests.quantize.distill.teacher_student import Watched
from tests.quantize.distill.two_processes import ONE_STEP, OPTIONS, WILD, distilled

ROOT = Path(__file__).parents[3]
PROCESSES = 2
# `--cpu` alone starts one process, whatever number is asked for, unless there is MPI; `--multi_gpu` is the launcher's word for several.
# Port 0 is any free one.
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES), "--num_machines", "1",
          "--main_process_port", "0", "--mixed_precision", "bf16", "--dynamo_backend", "no", "-m"]  # fmt: skip
FORK = ["tests.launcher", str(PROCESSES)]  # as processes of the launcher, but of one import of torch


@dataclass(frozen=True)
class Launched:
    """What each process left behind."""

    directory: Path
    facts: list[dict[str, Any]]
    integers: list[dict[str, NDArray[np.integer]]]


@pytest.fixture(scope="module", params=[FORK, pytest.param(LAUNCH, marks=pytest.mark.soak)], ids=["fork", "accelerate"])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    directory = tmp_path_factory.mktemp("launched")
    source = Path(next(iter(quad.__path__))).parent
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (source, ROOT))), "HF_HOME": str(directory / "home")}
    command = [sys.executable, "-m", *request.param, "tests.quantize.distill.two_processes", str(directory)]
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    return Launched(directory, facts, [load_file(directory / f"{rank}.safetensors") for rank in range(PROCESSES)])


@dataclass(frozen=True)
class Here:
    """The same in this process alone."""

    directory: Path

    def run(self, options: DistillOptions, name: str) -> Watched:
        return distilled(replace(options, checkpoint=self.directory / f"{name}.safetensors"))


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


pytestmark = pytest.mark.timeout(600)  # interpreters import torch: 6 s each here, and a busy machine is much slower


def rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(values.astype(np.float64)).mean()))


def test_one_step_is_the_same_step(launched: Launched, here: Here) -> None:
    """Its gradients are added up in the order of the calls, whichever process computed them."""
    here.run(ONE_STEP, "step")
    one, two = (load_file(directory / "step.safetensors") for directory in (here.directory, launched.directory))
    moments = [name for name in one if name.startswith("exp_avg.")]
    assert len(moments) == 4
    for name, values in one.items():
        assert values.tobytes() == two[name].tobytes()
    assert min(rms(one[name]) for name in moments) > 0


def test_two_processes_train_what_one_does(launched: Launched, here: Here) -> None:
    trained, start = here.run(OPTIONS, "kept"), here.run(DistillOptions(steps=0), "none")
    ways: list[float] = []
    for name, values in trained.result.integers.items():
        way = rms(values.astype(int) - start.result.integers[name])
        ways.append(way)
        np.testing.assert_array_equal(values, launched.integers[0][name])
    assert min(ways) > 1.0  # all have moved, by whole levels
    assert trained.result.alignment.steps == launched.facts[0]["steps"] == OPTIONS.steps
    assert [list(told) for told in trained.told] == launched.facts[0]["told"]


def test_all_processes_end_alike(launched: Launched) -> None:
    main, other = launched.facts
    for name, values in launched.integers[0].items():
        np.testing.assert_array_equal(launched.integers[1][name], values)
    for fact in ("steps", "wild_steps", "alignment", "same_again", "told_again"):
        assert main[fact] == other[fact]
    assert main["wild_steps"] == WILD.patience


def test_only_the_first_process_writes_and_tells(launched: Launched) -> None:
    main, other = launched.facts
    assert [step for step, _ in main["told"]] == [4, 8, 12]
    assert other["told"] == []
    assert (launched.directory / "kept.safetensors").is_file()
    assert not list(launched.directory.glob(".*.part"))


def test_all_processes_go_on_from_one_checkpoint_or_none_does(launched: Launched) -> None:
    for facts in launched.facts:
        assert facts["same_again"]
        assert facts["told_again"] == []
        assert facts["apart"].startswith("checkpoint: expected the same for all processes, found steps 0, 12; ")


def test_more_processes_than_calls_take_the_same_step(launched: Launched, here: Here) -> None:
    few = here.run(replace(ONE_STEP, batch=1), "few")
    for facts in launched.facts:
        assert facts["few"] == few.result.alignment.to_json()
