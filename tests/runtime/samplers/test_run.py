"""`run_sampler`: one signature for all samplers."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.errors import InputError, UnsupportedError
from quad.core.manifest import SamplerSpec
from quad.runtime.samplers import record_trajectory, run_sampler, solve_olss

# pndm cannot begin without a signal; test_walk.py has it.
KINDS = ["ddim", "ddpm", "euler", "euler-ancestral", "heun", "lms", "dpmsolver++", "sde-dpmsolver++", "unipc", "lcm", "olss"]


def _spec(lab, kind):
    schedule = lab.zero_snr("v_prediction")
    if kind != "olss":
        return SamplerSpec(kind=kind, steps=4)
    run = record_trajectory(
        SamplerSpec(kind="ddim", steps=20), schedule, lab.curved(schedule), np.random.default_rng(0).standard_normal((8, 16))
    )
    return SamplerSpec(kind="olss", steps=4, olss=solve_olss([run], 4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_dtype_shape_and_callback(lab, kind, dtype):
    schedule = lab.zero_snr("v_prediction")
    problem, asked, told, states = lab.curved(schedule), [], [], []

    def network(x, timestep):
        assert x.dtype == dtype
        assert isinstance(timestep, float)
        asked.append(timestep)
        return problem(x, timestep)

    def on_step(index, timestep, x):
        assert x.dtype == dtype
        told.append((index, timestep))
        states.append(x)

    noise = np.random.default_rng(1).standard_normal((3, 16)).astype(dtype)
    before = noise.copy()
    x0 = run_sampler(_spec(lab, kind), schedule, network, noise, np.random.default_rng(2), on_step)
    assert x0.dtype == dtype
    assert x0.shape == noise.shape
    assert told == list(enumerate(asked))
    assert len(told) == (7 if kind == "heun" else 4)
    np.testing.assert_array_equal(states[-1], x0)
    np.testing.assert_array_equal(noise, before)


@pytest.mark.parametrize("kind", ["euler", "ddim", "heun", "lms", "dpmsolver++", "unipc", "olss"])
def test_deterministic_samplers_leave_the_generator_alone(lab, kind):
    schedule = lab.zero_snr("v_prediction")
    rng = np.random.default_rng(9)
    before = rng.bit_generator.state
    run_sampler(_spec(lab, kind), schedule, lab.curved(schedule), np.ones((1, 16)), rng)
    assert rng.bit_generator.state == before


def test_unknown_sampler_is_refused(lab):
    with pytest.raises(UnsupportedError, match=r"^sampler: expected one of ddim, ddpm, (?=[^\n]*\bolss\b)[^\n]+, found magic; [^\n]+$"):
        run_sampler(SamplerSpec(kind="magic", steps=4), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones(2), np.random.default_rng(0))  # type: ignore[arg-type]


def test_whole_numbers_are_no_noise(lab):
    with pytest.raises(InputError, match=r"^sampler noise: expected floating point, found int64; [^\n]+$"):
        run_sampler(
            SamplerSpec(kind="ddim", steps=4), lab.zero_snr("v_prediction"), lambda x, t: x, np.ones(2, np.int64), np.random.default_rng(0)
        )
