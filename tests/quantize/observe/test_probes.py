"""Probes are the calls of the full-precision run itself: every step, both sides of guidance, the same noise each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from quad.core.errors import InputError
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.lora.fit.integers import balanced_inputs
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import Probe, ProbeOptions, interleave_tasks, record_probes, teacher_outputs
from quad.runtime.samplers.schedule import alphas_cumprod


def recorded(base: Base, tiny: Any, samples: list[CalibrationSample], seed: int = 0) -> dict[str, list[Probe]]:
    return record_probes(base, component_networks(base, tiny.network), tiny.table, tiny.adapters, samples, ProbeOptions(seed=seed))


def test_every_adapter_and_the_base_at_every_step_of_their_samplers(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    probes = recorded(base, tiny, samples)
    assert list(probes) == ["faint", "loud", "base"]
    abar = alphas_cumprod(base.schedule)
    for name, found in probes.items():
        assert len(found) == 2
        assert {probe.source for probe in found} == {name}
        assert found[0].timestep > found[1].timestep
        for probe in found:
            # Only text-to-image is guided: without and with the prompt, in one call.
            assert probe.inputs["sample"].shape == (2 if name == "base" else 1, 9, 8, 8)
            assert {values.dtype for values in probe.inputs.values()} == {np.dtype(np.float32)}
            assert probe.sigma_t == pytest.approx(np.sqrt(1 - abar[round(probe.timestep)]))


def test_the_second_probe_is_where_the_float_network_went(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    """With x_T all noise (zero terminal SNR) and v-prediction, the clean estimate is -v: the euler step of `sketch` follows from it."""
    first, second = recorded(base, tiny, samples)["loud"]
    with torch.no_grad():
        v = tiny.network(*first.tensors(), tiny.slots(tiny.adapters[1])).numpy()
    noise, abar = first.inputs["sample"][:, :4], alphas_cumprod(base.schedule)[round(second.timestep)]
    expected = np.sqrt(abar) * -v + np.sqrt(1 - abar) * noise
    np.testing.assert_allclose(second.inputs["sample"][:, :4], expected, atol=2e-3)
    np.testing.assert_array_equal(second.inputs["sample"][:, 4:], first.inputs["sample"][:, 4:])


def test_the_same_seed_gives_the_same_probes(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    one, again, other = (recorded(base, tiny, samples, seed)["base"][0].inputs["sample"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_only_so_many_runs_of_each_are_taken(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    networks = component_networks(base, tiny.network)
    twice = [*samples, samples[1], samples[1]]
    for limit, runs in ((1, 1), (2, 2), (None, 3)):
        found = record_probes(base, networks, tiny.table, tiny.adapters, twice, ProbeOptions(per_adapter=limit))
        assert len({probe.run for probe in found["loud"]}) == runs


def test_empty_calibration_is_refused(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    with pytest.raises(InputError, match=r"^probes: expected at least one calibration sample, found none; [^\n]+$"):
        recorded(base, tiny, [])
    with pytest.raises(InputError, match=r"^calibration: expected a sample for adapter 'faint', found none; [^\n]+$"):
        recorded(base, tiny, samples[:2])


def test_the_tasks_of_one_adapter_take_turns() -> None:
    spec = TaskSpec(adapter="ink", sampler=SamplerSpec(kind="ddim", steps=2), condition="none", mask="ones")
    plan = [
        (CalibrationSample(task=task, prompt=str(k)), spec, name)
        for task, name in (("a", "ink"), ("b", "ink"), ("c", "wax"))
        for k in range(3)
    ]
    found = interleave_tasks(plan)
    assert sorted(map(id, (sample for sample, _, _ in found))) == sorted(map(id, (sample for sample, _, _ in plan)))
    assert [sample.task + sample.prompt for sample, _, name in found if name == "ink"] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [sample.prompt for sample, _, name in found if name == "wax"] == ["0", "1", "2"]


def test_a_probe_knows_what_the_network_gave(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    probes = recorded(base, tiny, samples)
    for name, adapter in zip(("faint", "loud"), tiny.adapters, strict=True):
        recorded_outputs = teacher_outputs(tiny.network, probes[name], {})  # none is computed: these slots are not the adapter's
        unheard = [replace(probe, expected=None) for probe in probes[name]]
        computed = teacher_outputs(tiny.network, unheard, balanced_inputs(adapter, tiny.table))
        for one, other in zip(recorded_outputs, computed, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
