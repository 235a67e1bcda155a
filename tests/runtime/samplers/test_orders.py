"""Law 8: the error of a deterministic sampler falls with the step size as its order says, on a flow that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.manifest import NoiseSchedule, SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers import Start, run_sampler
from quad.runtime.samplers.run import plan_sampling

CENTRE, SPREAD = 0.8, 0.5
STEPS = (25, 50, 100, 200)
# Karras' levels lie evenly in the variable these methods are polynomials in; they are judged at the last, before the step to 0.
KARRAS = {"sigmas": "karras"}
HIGH = {"sigmas": "karras", "sigma_min": 0.1, "final_sigmas_type": "sigma_min"}


@dataclass
class _Gaussian:
    """The best network for one Gaussian, told the true signal share of each call; keeps what it was shown."""

    schedule: NoiseSchedule
    abars: tuple[float, ...]
    seen: list[NDArray[Any]]

    def __call__(self, x: NDArray[Any], _timestep: float) -> NDArray[Any]:
        abar = self.abars[len(self.seen)]
        self.seen.append(x)
        x0 = CENTRE + np.sqrt(abar) * SPREAD**2 * self._away(x, abar) / self._variance(abar)
        return np.asarray((x - np.sqrt(abar) * x0) / np.sqrt(1.0 - abar))

    @staticmethod
    def _away(x: NDArray[Any], abar: float) -> NDArray[Any]:
        return x - np.sqrt(abar) * CENTRE

    @staticmethod
    def _variance(abar: float) -> float:
        return abar * SPREAD**2 + 1.0 - abar

    def error(self) -> float:
        """RMS error of the last state shown: along the flow, x_t keeps its standardised place for ever."""
        first, last = self.abars[0], self.abars[len(self.seen) - 1]
        place = self._away(self.seen[0], first) / np.sqrt(self._variance(first))
        return float(np.sqrt(np.mean((self._away(self.seen[-1], last) - np.sqrt(self._variance(last)) * place) ** 2)))


def _errors(kind: str, schedule: NoiseSchedule, settings: dict[str, Any]) -> list[float]:
    found = []
    for steps in STEPS:
        spec = SamplerSpec(kind=kind, steps=steps, settings=SamplerSettings(**settings))  # type: ignore[arg-type]
        rng = np.random.default_rng(0)
        problem = _Gaussian(schedule, plan_sampling(spec, schedule, rng, Start()).sampler.sampling.abars, [])
        run_sampler(spec, schedule, problem, np.random.default_rng(3).standard_normal((64, 3)), rng)
        found.append(problem.error())
    return found


@pytest.mark.parametrize(
    ("kind", "settings", "order"),
    [
        ("euler", KARRAS, 1.0),
        ("heun", KARRAS, 2.0),
        ("dpmsolver++", {**KARRAS, "solver_order": 1}, 1.0),
        ("dpmsolver++", KARRAS, 2.0),
        ("dpmsolver++", {**KARRAS, "solver_type": "heun"}, 2.0),
        ("dpmsolver", {**HIGH, "solver_order": 1}, 1.0),
        ("dpmsolver", HIGH, 2.0),
        ("dpmsolver", {**HIGH, "solver_type": "heun"}, 2.0),
        # The corrector adds an order.
        ("unipc", {**KARRAS, "solver_order": 1}, 2.0),
        ("unipc", KARRAS, 3.0),
        ("unipc", {**KARRAS, "solver_type": "bh1"}, 3.0),
    ],
)
def test_error_slope_is_the_order(lab, kind, settings, order):
    errors = _errors(kind, lab.stable_diffusion("epsilon"), settings)
    assert -np.polyfit(np.log(STEPS), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("kind", "settings"), [("lms", KARRAS), ("unipc", {**KARRAS, "solver_order": 3})])
def test_higher_orders_begin_lower_and_still_gain(lab, kind, settings):
    errors = _errors(kind, lab.stable_diffusion("epsilon"), settings)
    assert -np.polyfit(np.log(STEPS), np.log(errors), 1)[0] > 2.8


def test_dpmsolver_of_order_3_beats_order_2(lab):
    # Its first step is of order 1, and shows in the slope; the polynomial of degree 2 shows in the size.
    second, third = (_errors("dpmsolver++", lab.stable_diffusion("epsilon"), {**KARRAS, "solver_order": order}) for order in (2, 3))
    assert all(better < worse / 3.0 for better, worse in zip(third, second, strict=True))


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1.0), ("pndm", 3.0)])
def test_error_slope_at_whole_timesteps(lab, kind, order):
    # pndm reaches its order after its first step.
    errors = _errors(kind, lab.cosine("epsilon"), {})
    assert -np.polyfit(np.log(STEPS), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)
