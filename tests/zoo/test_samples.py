"""Laws of the tasks' samples: exact truth, closed vocabulary, one seed one sample."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad.zoo import samples, world
from quad.zoo.draw import PAPER, PASTEL
from quad.zoo.world import Portrait, Scene

SEEDS = st.integers(0, 2 * 10**9)
FEW = settings(max_examples=20)


@pytest.mark.parametrize("task", [*samples.TASKS, *samples.LATER])
@FEW
@given(seed=SEEDS)
def test_prompts_hold_only_words_of_the_vocabulary(task: str, seed: int) -> None:
    words = re.findall(r"[^\s,]+", samples.sample(task, seed).prompt)
    assert words
    assert set(words) <= set(world.VOCABULARY)


@pytest.mark.parametrize("task", [*samples.TASKS, *samples.LATER])
def test_a_seed_is_a_sample_and_another_seed_is_another(task: str) -> None:
    first, again, other = (samples.sample(task, seed) for seed in (10**9, 10**9, 10**9 + 1))
    np.testing.assert_array_equal(first.truth, again.truth)
    assert first.prompt == again.prompt
    assert not np.array_equal(first.truth, other.truth)


@FEW
@given(SEEDS)
def test_the_truth_of_removal_is_the_scene_outside_the_mask(seed: int) -> None:
    sample = samples.sample("removal", seed)
    assert sample.image is not None
    assert sample.mask is not None
    outside = sample.mask == 0
    assert outside.any()
    np.testing.assert_array_equal(sample.image[outside], sample.truth[outside])
    assert isinstance(sample.before, Scene)
    assert isinstance(sample.after, Scene)
    assert len(sample.after.toys) == len(sample.before.toys) - 1


@FEW
@given(SEEDS)
def test_a_masked_picture_shows_nothing_of_the_hole(seed: int) -> None:
    sample = samples.sample("removal", seed)
    assert sample.image is not None
    assert sample.mask is not None
    np.testing.assert_array_equal(samples.masked(sample.image, sample.mask), samples.masked(sample.truth, sample.mask))


@FEW
@given(SEEDS)
def test_transform_changes_one_attribute_and_says_which(seed: int) -> None:
    sample = samples.sample("transform", seed)
    before, after = sample.before, sample.after
    assert isinstance(before, Scene)
    assert isinstance(after, Scene)
    changes = [(before.time, after.time), (before.ground, after.ground)]
    changes += [(old.colour, new.colour) for old, new in zip(before.toys, after.toys, strict=True)]
    new = [b for a, b in changes if a != b]
    assert len(new) == 1
    assert new[0] in sample.prompt


@FEW
@given(SEEDS)
def test_a_sticker_names_exactly_one_object(seed: int) -> None:
    sample = samples.sample("sticker", seed)
    assert isinstance(sample.before, Scene)
    named = [toy for toy in sample.before.toys if world.sticker_prompt(toy) == sample.prompt]
    assert named == [sample.before.toys[int(sample.detail)]]


@FEW
@given(SEEDS)
def test_portrait_asks_for_the_style_of_its_truth(seed: int) -> None:
    sample = samples.sample("portrait", seed)
    assert sample.detail in sample.prompt
    assert isinstance(sample.after, Portrait)
    assert sample.before == sample.after


@FEW
@given(SEEDS)
def test_pastel_is_the_same_scene_nearer_to_paper(seed: int) -> None:
    sample = samples.sample("pastel", seed)
    assert sample.image is not None
    assert sample.before == sample.after
    before, after, paper = (np.asarray(x, np.float64) for x in (sample.image, sample.truth, PAPER))
    np.testing.assert_allclose(after - paper, (before - paper) * (1 - PASTEL), atol=0.51)


@FEW
@given(SEEDS)
def test_winter_and_golden_change_the_same_in_every_scene(seed: int) -> None:
    winter, golden = (samples.sample(task, seed) for task in ("winter", "golden"))
    assert isinstance(winter.before, Scene)
    assert winter.after == replace(winter.before, time="night", ground="snow")
    assert isinstance(golden.before, Scene)
    assert isinstance(golden.after, Scene)
    assert {toy.colour for toy in golden.after.toys} == {"yellow"}
    assert (golden.after.time, golden.after.ground, golden.after.hill) == ("sunset", golden.before.ground, golden.before.hill)


def test_what_is_learnt_later_is_no_task_of_the_model() -> None:
    assert not set(samples.LATER) & set(samples.TASKS)
    assert set(samples.SAMPLERS) == {*samples.TASKS, *samples.LATER, samples.FEW_STEPS}
