"""Fidelity is exact where nothing is lost, a gain is a factor of the effect, and calls are the float network's own answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quad.core.errors import InputError
from quad.lora.fit.slot_inputs import slot_inputs
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall, call_teacher, fidelity, fingerprint
from tests.quantize.distill.teacher_student import make_probes

PERFECT_DB = 200.0


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_lessons(count: int = 3) -> list[TeacherCall]:
    inputs = draw(0, 1, 9, 4, 4), torch.tensor([5.0]), draw(1, 1, 2, 8)
    return [TeacherCall(run=i, inputs=inputs, target=draw(2 + i, 1, 4, 4, 4), without=draw(50 + i, 1, 4, 4, 4)) for i in range(count)]


def measured(calls: list[TeacherCall], gain: float, base_error: float = 0.0) -> Fidelity:
    """A network whose effect is `gain` times the true one, on a base that is off by a constant."""
    bases = [one.without + base_error for one in calls]
    outputs = [base + gain * (one.target - one.without) for one, base in zip(calls, bases, strict=True)]
    return fidelity(calls, outputs, bases)


def test_a_perfect_network_has_the_largest_figures_that_json_can_tell() -> None:
    calls = make_lessons()
    found = fidelity(calls, [one.target for one in calls], [one.without for one in calls])
    assert found == Fidelity(PERFECT_DB, PERFECT_DB, 1.0)
    assert found.to_json() == {"output_db": PERFECT_DB, "effect_db": PERFECT_DB, "effect_gain": 1.0}


@pytest.mark.parametrize("gain", [0.0, 0.25, 0.9, 1.5, -1.0])
def test_an_effect_that_is_scaled_has_that_gain_and_the_error_that_is_missing(gain: float) -> None:
    found = measured(make_lessons(), gain)
    assert found.effect_gain == pytest.approx(gain, abs=1e-6)
    assert found.effect_db == pytest.approx(-20 * torch.tensor(abs(1 - gain)).log10().item(), abs=1e-4)


@pytest.mark.parametrize("error", [0.1, 10.0])
def test_an_error_of_the_base_is_none_of_the_effect(error: float) -> None:
    calls = make_lessons()
    found = measured(calls, 1.0, error)
    power = torch.cat([one.target for one in calls]).square().mean().item()
    assert found.output_db == pytest.approx(10 * torch.tensor(power / error**2).log10().item(), abs=1e-3)
    assert found.effect_db is not None
    assert found.effect_db > 100.0
    assert found.effect_gain == pytest.approx(1.0, abs=1e-6)


def test_an_adapter_without_effect_has_none_to_lose() -> None:
    calls = [replace(one, without=one.target) for one in make_lessons()]
    found = fidelity(calls, [one.target + 1.0 for one in calls], [one.target for one in calls])
    assert (found.effect_db, found.effect_gain) == (None, None)
    assert found.output_db < PERFECT_DB


def test_lessons_pool_their_energy_not_their_decibels() -> None:
    """A call whose target is nothing, answered rightly, changes nothing."""
    calls = make_lessons()
    nothing = replace(calls[0], target=torch.zeros(1, 4, 4, 4), without=torch.zeros(1, 4, 4, 4))
    outputs, bases = [1.1 * one.target for one in calls], [one.without for one in calls]
    assert fidelity([*calls, nothing], [*outputs, nothing.target], [*bases, nothing.without]) == fidelity(calls, outputs, bases)
    assert fidelity(calls, outputs, bases).output_db == pytest.approx(20.0, abs=1e-4)


def test_a_lesson_is_the_float_networks_answer_with_and_without_the_adapter(tiny: Any) -> None:
    adapter, probes = tiny.adapters[1], make_probes("loud", 6)  # more calls than run as one
    calls = call_teacher(tiny.network, slot_inputs(adapter, tiny.table), probes)
    assert [one.run for one in calls] == [probe.run for probe in probes]
    slots = {name: torch.from_numpy(values) for name, values in slot_inputs(adapter, tiny.table).items()}
    for one, probe in zip(calls, probes, strict=True):
        torch.testing.assert_close(one.target, tiny.network(*probe.tensors(), slots), rtol=0, atol=1e-5)
        torch.testing.assert_close(one.without, tiny.network(*probe.tensors()), rtol=0, atol=1e-5)
        assert {one.target.requires_grad, one.without.requires_grad} == {False}


def test_a_guided_call_is_one_lesson_of_two_rows(tiny: Any) -> None:
    probe = make_probes("loud", 1)[0]
    inputs = {name: values if name == "timestep" else values.repeat(2, axis=0) for name, values in probe.inputs.items()}
    guided, single = call_teacher(tiny.network, slot_inputs(tiny.adapters[1], tiny.table), [replace(probe, inputs=inputs), probe])
    assert (guided.target.shape, guided.inputs[1].shape) == ((2, 4, 8, 8), (2,))
    torch.testing.assert_close(guided.target, single.target.expand(2, -1, -1, -1), rtol=0, atol=1e-5)


def test_no_probes_is_one_line(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"^alignment: expected at least one probe of the adapter, found none; [^\n]+$"):
        call_teacher(tiny.network, {}, [])


def test_a_fingerprint_is_of_all_that_is_asked_and_told() -> None:
    calls = make_lessons()
    one = calls[0]
    changed = [replace(one, target=-one.target), replace(one, without=-one.without), replace(one, inputs=(-one.inputs[0], *one.inputs[1:]))]
    found = {fingerprint([other, *calls[1:]]) for other in (one, *changed)} | {fingerprint(calls[1:]), fingerprint(calls[::-1])}
    assert len(found) == 6
    assert fingerprint(make_lessons()) == fingerprint(calls)


def test_what_floats_differ_by_is_no_effect() -> None:
    """The float network alone and in a batch: an adapter that does nothing has no effect to be measured, not one of rounding."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(1, 4, 8, 8, generator=rng)
    nearly = y * (1 + 1e-6 * torch.randn(y.shape, generator=rng))
    call = (y, torch.zeros(1), torch.zeros(1, 1, 1))
    quantized = [y + 0.01 * torch.randn(y.shape, generator=rng)]
    found = fidelity([TeacherCall(run=0, inputs=call, target=nearly, without=y)], quantized, quantized)
    assert (found.effect_db, found.effect_gain) == (None, None)
    seen = fidelity([TeacherCall(run=0, inputs=call, target=y * 1.001, without=y)], quantized, quantized)
    assert seen.effect_gain == pytest.approx(0.0)
