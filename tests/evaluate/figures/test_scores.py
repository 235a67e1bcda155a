"""Scores: the truth itself reaches every bar, another sample's truth does not."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quad.evaluate.figures import metrics
from quad.evaluate.figures.paired import paired_task
from quad.evaluate.figures.quality import ROWS, held_out, task_figures
from quad.evaluate.figures.scores import SCORERS, score
from quad.zoo.judge import Judge
from quad.zoo.samples import FEW_STEPS, TASKS

N = 24


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.mark.parametrize(("task", "size"), [*((task, 64) for task in TASKS), *((task, 128) for task in ("sticker", "portrait", FEW_STEPS))])
def test_the_truth_reaches_every_bar_and_another_samples_truth_does_not(task: str, size: int, judge: Judge) -> None:
    samples = held_out(task, N, size)
    truth = np.stack([sample.truth for sample in samples])
    right = task_figures({task: score(task, samples, truth, judge)}, {}, {task: N})
    wrong = task_figures({task: score(task, samples, np.roll(truth, 1, axis=0), judge)}, {}, {task: N})
    assert len(right) == sum(row.task == task for row in ROWS)
    assert all(figure.passed for figure in right)
    missed = {figure.name for figure in wrong if not figure.passed}
    # A picture of another sample still is a sticker: that figure is of form alone.
    assert missed or task == "sticker"


def test_every_task_has_a_scorer() -> None:
    assert set(SCORERS) == {*TASKS, FEW_STEPS}


def test_removal_that_does_nothing_misses_and_the_object_is_still_there(judge: Judge) -> None:
    samples = held_out("removal", N)
    inputs = np.stack([sample.image for sample in samples if sample.image is not None])
    scores = score("removal", samples, inputs, judge)
    assert scores["gone"] < 0.2
    assert scores["gain_db"] < 0
    assert scores["inside_db"] < scores["nearest_db"]


def test_transform_that_does_nothing_keeps_all_and_changes_nothing(judge: Judge) -> None:
    samples = held_out("transform", N)
    inputs = np.stack([sample.image for sample in samples if sample.image is not None])
    scores = score("transform", samples, inputs, judge)
    assert scores["changed"] < 0.1
    assert scores["kept"] > 0.97


def test_pairs_of_equals_are_perfect_and_the_control_is_not(judge: Judge) -> None:
    samples = held_out("transform", 6)
    truth = np.stack([sample.truth for sample in samples])
    entry = paired_task(samples, truth, truth, np.roll(truth, 1, axis=0), judge)
    assert entry.psnr == metrics.PSNR_CAP_DB
    assert entry.ssim == pytest.approx(1)
    assert entry.sim_d == pytest.approx(1)
    assert entry.lpips_toy == pytest.approx(0, abs=1e-9)
    assert entry.seed_control.psnr < 30
    assert {"n", "psnr", "ssim", "lpips_toy", "fd_toy", "sim_d", "sim_image", "structure", "truth", "seed_control"} <= set(
        msgspec.to_builtins(entry)
    )
