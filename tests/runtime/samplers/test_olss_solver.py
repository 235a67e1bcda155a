"""The OLSS solver: exact with all steps, never coarser with more, better than DDIM on runs it has not seen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from quad.core.errors import InputError, UsageError
from quad.core.manifest import SamplerSpec
from quad.runtime.samplers import Trajectory, olss_error, record_trajectory, run_sampler, solve_olss
from quad.runtime.samplers.olss import solver

CASES = [("zero_snr", "v_prediction"), ("stable_diffusion", "epsilon"), ("stable_diffusion", "v_prediction")]


@cache
def _recorded(lab, name, prediction, total, kind="ddim", runs=4):
    schedule = getattr(lab, name)(prediction)
    rng = np.random.default_rng(1)
    teacher = SamplerSpec(kind=kind, steps=total)
    return [record_trajectory(teacher, schedule, lab.curved(schedule), rng.standard_normal((8, 16))) for _ in range(runs)]


def _error(lab, schedule, spec, reference, noise):
    found = run_sampler(spec, schedule, lab.curved(schedule), noise, np.random.default_rng(0))
    return float(np.sqrt(np.mean((found - reference) ** 2)))


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_all_steps_kept_is_the_teacher_itself(lab, name, prediction, kind):
    runs = _recorded(lab, name, prediction, 20, kind)
    table = solve_olss(runs, 20)
    assert table.timesteps == runs[0].timesteps
    assert olss_error(runs, table) < 1e-8
    if (name, kind) != (
        "stable_diffusion",
        "euler",
    ):  # there Euler first shrinks the noise a little
        schedule = getattr(lab, name)(prediction)
        noise = np.random.default_rng(2).standard_normal((16, 16))
        teacher = run_sampler(SamplerSpec(kind=kind, steps=20), schedule, lab.curved(schedule), noise, np.random.default_rng(0))
        assert _error(lab, schedule, SamplerSpec(kind="olss", steps=20, olss=table), teacher, noise) < 1e-5


@pytest.mark.parametrize("n", [3, 4, 6, 8])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_better_than_ddim_of_as_many_steps_on_unseen_noise(lab, name, prediction, n):
    schedule = getattr(lab, name)(prediction)
    noise = np.random.default_rng(99).standard_normal((128, 16))
    teacher = run_sampler(SamplerSpec(kind="ddim", steps=50), schedule, lab.curved(schedule), noise, np.random.default_rng(0))
    table = solve_olss(_recorded(lab, name, prediction, 50), n)
    olss = _error(lab, schedule, SamplerSpec(kind="olss", steps=n, olss=table), teacher, noise)
    assert olss <= _error(lab, schedule, SamplerSpec(kind="ddim", steps=n), teacher, noise)


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_more_steps_never_raise_the_bound(lab, name, prediction):
    runs = _recorded(lab, name, prediction, 12)
    bounds = [olss_error(runs, solve_olss(runs, n)) for n in range(1, 13)]
    assert (np.diff(bounds) <= 1e-6).all()
    assert bounds[-1] < bounds[0] / 100


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_chosen_path_has_no_larger_bound_than_even_spacing(lab, name, prediction):
    problem = solver._problem(_recorded(lab, name, prediction, 20), solver.RIDGE)
    for n in (2, 4, 5, 10):
        even = tuple(range(0, 20, 20 // n))
        assert solver._rank(problem, solver._best_path(problem, n))[0] <= solver._rank(problem, even)[0] + 1e-12


def test_a_larger_bound_needs_no_more_steps(lab):
    problem = solver._problem(_recorded(lab, "zero_snr", "v_prediction", 20), solver.RIDGE)
    lengths = [len(path) for bound in np.geomspace(1e-4, 1.0, 12) ** 2 if (path := solver._farthest(problem, float(bound), 20))]
    assert len(lengths) >= 6
    assert (np.diff(lengths) <= 0).all()


def test_greedy_path_shorter_than_asked_is_lengthened():
    # States that no output helps to reach: greedy goes to the end in one step, whatever the bound.
    rows = np.eye(13)
    run = Trajectory((999, 799, 599, 399, 199, 99), rows[:7], rows[7:])
    assert solver._bisected(solver._problem([run], solver.RIDGE), 4) == (0,)
    table = solve_olss([run], 4)
    assert len(table.timesteps) == len(table.w) == len(table.v) == 4
    assert list(table.timesteps) == sorted(set(table.timesteps), reverse=True)
    np.testing.assert_allclose(np.concatenate(table.v), 0.0, atol=1e-12)


@pytest.mark.parametrize("network", [np.zeros_like, np.ones_like])
def test_outputs_that_repeat_each_other_are_survived_without_a_ridge(lab, network):
    noise = np.random.default_rng(0).standard_normal((1, 32))
    run = record_trajectory(SamplerSpec(kind="ddim", steps=10), lab.zero_snr("v_prediction"), lambda x, t: network(x), noise)
    for n in (1, 4, 10):
        table = solve_olss([run], n, ridge=0.0)
        assert len(table.timesteps) == n
        assert olss_error([run], table) < 1e-6


def test_weights_are_least_squares(lab):
    runs = _recorded(lab, "stable_diffusion", "epsilon", 20)
    table = solve_olss(runs, 4, ridge=1e-12)
    data = solver._stacked(runs)
    places = [runs[0].timesteps.index(t) for t in table.timesteps]
    basis = np.stack([data[0], *(data[21 + i] for i in places)])
    best, *_ = np.linalg.lstsq(basis.T, data[20], rcond=None)
    np.testing.assert_allclose([table.w[-1], *table.v[-1]], best, rtol=1e-4, atol=1e-5)


def test_runs_of_other_shapes_can_be_mixed(lab):
    schedule = lab.zero_snr("v_prediction")
    rng = np.random.default_rng(0)
    runs = [
        record_trajectory(SamplerSpec(kind="ddim", steps=10), schedule, lab.curved(schedule), rng.standard_normal((b, 16))) for b in (1, 5)
    ]
    assert len(solve_olss(runs, 3).w) == 3


def test_the_same_runs_give_the_same_table(lab):
    runs = _recorded(lab, "zero_snr", "v_prediction", 20)
    assert solve_olss(runs, 5) == solve_olss(runs, 5)


def test_bad_requests_are_one_line(lab):
    runs = _recorded(lab, "zero_snr", "v_prediction", 20)
    other = _recorded(lab, "zero_snr", "v_prediction", 10)
    broken = replace(runs[0], outputs=np.full_like(runs[0].outputs, np.nan))
    with pytest.raises(UsageError, match=r"^olss solver: expected 1 to 20 steps, as the teacher has, found 21; [^\n]+$"):
        solve_olss(runs, 21)
    with pytest.raises(UsageError, match="found 0; "):
        solve_olss(runs, 0)
    with pytest.raises(InputError, match=r"^olss solver: expected at least one teacher run, found none; [^\n]+$"):
        solve_olss([], 4)
    with pytest.raises(InputError, match=r"^olss solver: expected runs over the same timesteps, found others; [^\n]+$"):
        solve_olss([runs[0], other[0]], 4)
    with pytest.raises(InputError, match=r"^olss solver: expected 21 states and 20 outputs, found 20 and 20; [^\n]+$"):
        solve_olss([replace(runs[0], states=runs[0].states[:-1])], 4)
    with pytest.raises(InputError, match=r"^olss solver: expected finite teacher runs, found NaN or infinity; [^\n]+$"):
        solve_olss([broken], 4)
    with pytest.raises(InputError, match=r"^olss table: expected timesteps of the teacher, found \[999, "):
        olss_error(other, solve_olss(runs, 20))
