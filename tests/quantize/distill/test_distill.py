"""Training may only gain, touches nothing but one adapter's integers, and is the same twice (docs/method.md sections 1 and 3)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quad.core.errors import InputError, UsageError
from quad.lora.fit.integers import quantize_adapter, rescaled_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import LowRank
from quad.quantize.correct.simulate import simulated
from quad.quantize.distill import gradients
from quad.quantize.distill.distill import TeacherStudent, distill, split_runs
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import TeacherCall, call_teacher
from quad.quantize.distill.training import size_of
from tests.quantize.conftest import ATTENTION, Tiny
from tests.quantize.distill.teacher_student import Watched, make_pair, make_probes, own_inputs, state_of

SHORT = DistillOptions(steps=12, rate=0.01)  # 8-bit weights move by whole levels or not at all: the tiny network needs longer steps
WILD = DistillOptions(steps=20, rate=10.0, every=1, patience=2)  # every step is far too long


@pytest.fixture(scope="module")
def pair(tiny: Any) -> TeacherStudent:
    return make_pair(tiny)


@pytest.fixture(scope="module")
def trained(pair: TeacherStudent, tiny: Tiny) -> Watched:
    return Watched(pair, tiny.adapters[1], SHORT)


@pytest.fixture(scope="module")
def still(pair: TeacherStudent, tiny: Tiny) -> Watched:
    """Training with steps of no length: the start and its held-out loss."""
    return Watched(pair, tiny.adapters[1], DistillOptions(steps=1, rate=0.0))


@pytest.fixture(scope="module")
def examples(pair: TeacherStudent, tiny: Tiny) -> tuple[TeacherCall, ...]:
    return tuple(call_teacher(pair.teacher, slot_inputs(tiny.adapters[1], tiny.table), make_probes("loud")))


def test_training_lowers_the_held_out_loss_and_brings_output_and_effect_nearer(tiny: Tiny) -> None:
    """With 16-bit activations the rounded weights make the error, and that can be learned away."""
    pair, options = make_pair(tiny, bits=16), DistillOptions(steps=20, rate=0.003, every=5)
    still, trained = (Watched(pair, tiny.adapters[1], replace(options, rate=rate)) for rate in (0.0, options.rate))
    found = trained.result.alignment
    assert found.after_distill is not None
    assert trained.told[-1][1] < still.told[0][1]
    assert found.after_distill.output_db > found.after_rescale.output_db + 0.1
    assert not trained.same_integers(still)
    assert found.to_json()["after_distill_db"] == found.after_distill.output_db


def test_minding_the_effect_trades_some_output_for_it(pair: TeacherStudent, tiny: Tiny, trained: Watched) -> None:
    heavy = Watched(pair, tiny.adapters[1], replace(SHORT, effect_weight=100.0)).result.alignment.after_distill
    light = Watched(pair, tiny.adapters[1], replace(SHORT, effect_weight=0.0)).result.alignment.after_distill
    assert heavy is not None
    assert light is not None
    assert heavy.effect_db is not None
    assert light.effect_db is not None
    assert heavy.effect_db >= light.effect_db


def test_padding_does_not_slow_the_training() -> None:
    weight = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert size_of(weight) == size_of(weight[:1]) == pytest.approx(12.5**0.5)
    assert size_of(torch.zeros(2, 2)) == 0.0


def test_without_steps_it_is_rescaling_alone(pair: TeacherStudent, tiny: Tiny, still: Watched) -> None:
    for adapter in tiny.adapters:
        alone = Watched(pair, adapter, DistillOptions(steps=0))
        for name, values in quantize_adapter(adapter, pair.table, pair.profile).items():
            np.testing.assert_array_equal(alone.result.integers[name], values)
        assert alone.told == []
        found = alone.result.alignment
        assert (found.after_distill, found.steps) == (None, 0)
        assert found.to_json()["after_distill_db"] == found.to_json()["after_rescale_db"]
    assert still.same_integers(alone)


def test_what_only_loses_is_left_at_its_start_and_stopped_early(pair: TeacherStudent, tiny: Tiny, still: Watched) -> None:
    wild = Watched(pair, tiny.adapters[1], WILD)
    assert wild.same_integers(still)
    assert wild.result.alignment.after_distill == wild.result.alignment.after_rescale
    assert wild.told == [(step, still.told[0][1]) for step in (1, 2)]
    assert wild.result.alignment.steps == WILD.patience < WILD.steps


def test_a_loss_that_is_no_number_is_no_gain(pair: TeacherStudent, tiny: Tiny, still: Watched, examples: tuple[TeacherCall, ...]) -> None:
    broken = tuple(replace(one, target=torch.full_like(one.target, math.nan)) for one in examples)
    assert Watched(pair, tiny.adapters[1], DistillOptions(steps=2, lambda_=1.0, every=1), broken).same_integers(still)


def test_progress_is_told_at_every_check_and_never_rises(pair: TeacherStudent, tiny: Tiny) -> None:
    steps, losses = zip(*Watched(pair, tiny.adapters[0], DistillOptions(steps=7, every=3)).told, strict=True)
    assert steps == (3, 6, 7)
    assert list(losses) == sorted(losses, reverse=True)


def test_nothing_but_the_adapters_integers_changes(pair: TeacherStudent, tiny: Tiny) -> None:
    adapter = replace(tiny.adapters[1], weights={ATTENTION: tiny.adapters[1].weights[ATTENTION]})
    before, digest, output = state_of(tiny.network), pair.profile.digest, tiny.network(*tiny.inputs)
    weights = {path: (pair.a.copy(), pair.b.copy()) for path, pair in adapter.weights.items()}
    integers = Watched(pair, adapter, DistillOptions(steps=3)).result.integers
    for name, (values, trains, no_grad) in state_of(tiny.network).items():
        assert torch.equal(values, before[name][0])
        assert (trains, no_grad) == before[name][1:] == (False, True)
    assert torch.equal(tiny.network(*tiny.inputs), output)
    assert pair.profile.digest == digest
    for path, (a, b) in weights.items():
        np.testing.assert_array_equal(adapter.weights[path].a, a)
        np.testing.assert_array_equal(adapter.weights[path].b, b)
    assert {name for name, values in integers.items() if values.any()} == own_inputs(adapter, pair.table)


def test_integers_stay_inside_their_encodings_and_padding_stays_zero(pair: TeacherStudent, tiny: Tiny, trained: Watched) -> None:
    faint = tiny.adapters[0]  # of rank 2 in slots of rank 4
    for adapter, found in ((faint, Watched(pair, faint, DistillOptions(steps=10, rate=0.3))), (tiny.adapters[1], trained)):
        for slot in pair.table.slots:
            a, b = found.result.integers[slot.a_name], found.result.integers[slot.b_name]
            assert a.dtype == b.dtype == np.int8
            assert max(np.abs(a.astype(int)).max(), np.abs(b.astype(int)).max()) <= 127
            assert not a[adapter.rank :].any()
            assert not b[:, adapter.rank :].any()


def test_the_same_seed_gives_the_same_integers_and_another_others(pair: TeacherStudent, tiny: Tiny, trained: Watched) -> None:
    again = Watched(pair, tiny.adapters[1], SHORT)
    assert again.same_integers(trained)
    assert again.told == trained.told
    assert not Watched(pair, tiny.adapters[1], replace(SHORT, seed=1)).same_integers(trained)


def test_examples_count_only_with_lambda(pair: TeacherStudent, tiny: Tiny, trained: Watched, examples: tuple[TeacherCall, ...]) -> None:
    assert Watched(pair, tiny.adapters[1], SHORT, examples).same_integers(trained)
    assert not Watched(pair, tiny.adapters[1], replace(SHORT, lambda_=1.0), examples).same_integers(trained)


@pytest.mark.parametrize(("runs", "held"), [(1, 1), (2, 1), (4, 1), (6, 1), (8, 2)])
def test_whole_runs_are_held_out(runs: int, held: int) -> None:
    probes = make_probes("loud", runs)
    learned, checked = split_runs(probes)
    assert {id(probe) for probe in (*learned, *checked)} == {id(probe) for probe in probes}
    assert len({probe.run for probe in checked}) == held
    assert not {probe.run for probe in checked} & {probe.run for probe in learned}


def test_one_run_is_enough_to_learn_from(pair: TeacherStudent, tiny: Tiny) -> None:
    found = distill(pair, tiny.adapters[1], make_probes("loud", 1), DistillOptions(steps=2)).alignment
    assert found.steps == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (DistillOptions(steps=-1), "--distill-steps: expected 0 or more, found -1; choose a larger one"),
        (DistillOptions(steps=5, lambda_=-0.5), "--lambda: expected a number from 0, found -0.5; choose another"),
        (DistillOptions(steps=5, lambda_=math.nan), "--lambda: expected a number from 0, found nan; choose another"),
        (DistillOptions(lambda_=1.0), "--lambda: expected steps of training, found --distill-steps 0; ask for some, or leave it out"),
        (
            DistillOptions(steps=5, lambda_=1.0),
            "--lambda: expected samples with their true pictures, found none; leave it out: the teacher's runs are enough",
        ),
    ],
)
def test_options_out_of_range_are_one_line(pair: TeacherStudent, tiny: Tiny, options: DistillOptions, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        Watched(pair, tiny.adapters[0], options)
    assert str(refused.value) == says


def test_nan_and_no_calls_are_one_line(pair: TeacherStudent, tiny: Tiny) -> None:
    loud = tiny.adapters[1]
    weights = loud.weights[ATTENTION]
    broken = replace(loud, weights={**loud.weights, ATTENTION: LowRank(weights.a * np.float32(np.nan), weights.b)})
    with pytest.raises(InputError, match=rf"^adapter 'loud', {ATTENTION}: expected finite weights, found NaN or Inf; [^\n]+$"):
        Watched(pair, broken, SHORT)
    with pytest.raises(InputError, match=r"^alignment: expected at least one probe of the adapter, found none; [^\n]+$"):
        distill(pair, loud, [], SHORT)


def test_gradients_of_pairs_add_up_to_those_of_single_calls(
    pair: TeacherStudent, tiny: Tiny, examples: tuple[TeacherCall, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, adapter = replace(SHORT, lambda_=0.5), tiny.adapters[1]
    start = rescaled_inputs(adapter, pair.table, pair.profile)
    names = sorted(own_inputs(adapter, tiny.table))
    calls = [(call, call.without, example) for call, example in zip(examples[:3], examples[3:6], strict=True)]
    with simulated(pair.student, pair.profile, "unet"):
        student = Student(pair.student, encodings=pair.profile.component("unet"), start=start, names=names)
        pairs = gradients.gradients(student, calls, options)
        monkeypatch.setattr(gradients, "TOGETHER", 1)
        single = gradients.gradients(student, calls, options)
    assert (len(pairs), len(single)) == (2, 3)
    assert (pairs[0] - single[:2].sum(0)).norm() <= 1e-3 * single[:2].sum(0).norm()
    assert (pairs[1] - single[2]).norm() <= 1e-3 * single[2].norm()
