"""A recorded run is the run: states, outputs and timesteps as the teacher saw them."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.errors import UsageError
from quad.core.manifest import SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers import record_trajectory, run_sampler
from quad.runtime.samplers.schedule import whole_timesteps


@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_record_is_the_run(lab, kind):
    schedule, teacher = lab.stable_diffusion("epsilon"), SamplerSpec(kind=kind, steps=10)
    problem = lab.curved(schedule)
    noise = np.random.default_rng(0).standard_normal((3, 16))
    run = record_trajectory(teacher, schedule, problem, noise)
    assert list(run.timesteps) == whole_timesteps("ddim", schedule, 10, SamplerSettings())
    assert run.states.shape == (11, 3, 16)
    assert run.outputs.shape == (10, 3, 16)
    np.testing.assert_array_equal(run.states[0], noise)
    np.testing.assert_array_equal(run.states[-1], run_sampler(teacher, schedule, problem, noise, np.random.default_rng(0)))
    for i in range(1, 10):
        np.testing.assert_array_equal(run.outputs[i], problem(run.states[i], run.timesteps[i]))


def test_network_sees_the_dtype_of_the_noise(lab):
    seen = set()

    def network(x, timestep):
        seen.add(x.dtype)
        return x

    run = record_trajectory(SamplerSpec(kind="ddim", steps=4), lab.zero_snr("v_prediction"), network, np.ones((1, 2), np.float32))
    assert seen == {np.dtype("float32")}
    assert run.states.dtype == run.outputs.dtype == np.float64


def test_a_teacher_with_fresh_noise_is_refused(lab):
    with pytest.raises(UsageError, match=r"^olss teacher: expected sampler ddim or euler, found lcm; [^\n]+$"):
        record_trajectory(SamplerSpec(kind="lcm", steps=4), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones((1, 2)))
