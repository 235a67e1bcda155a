"""DPM-Solver, multistep: the half-linear flow solved exactly but for the network's part, which is a polynomial in log signal-to-noise.

    symbol           here           meaning
    alpha, s         `alpha, s`     sqrt(abar) and sqrt(1 - abar): signal and noise of x_t
    lambda           `-log(sigma)`  log(alpha / s), half the log signal-to-noise
    h                `h`            lambda_next - lambda
    m                `outputs`      what is integrated: x_0 (dpmsolver++, sde-dpmsolver++) or eps (dpmsolver), newest first
    D_0, D_1, D_2    `d`            m and its divided differences
    z                `z`            -h, -2 h or h: the exponent of the method
    E                `e`            e^z - 1

    x_next = a x - c (E D_0 + g_1 D_1 + g_2 D_2 + noise), c = alpha_next or s_next
    midpoint: g_1 = E / 2, g_2 = 0;   heun and order 3: g_1 = E / z - 1, g_2 = (E - z) / z^2 - 1 / 2

Source: Lu et al. 2022 (dpmsolver), Eqs. 3.7 and appendix; Lu et al. 2023 (dpmsolver++), Algorithm 2 and appendix; numbers as diffusers'
DPMSolverMultistepScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, expm1, inf, log, sqrt

from quad.core.errors import UnsupportedError, mismatch
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, solver_schedule
from quad.runtime.samplers.schedule import Array, solver_path

# Under so many steps the last ones fall back to lower orders, where the settings ask for it.
FEW_STEPS = 15


def log_ratio(sigma: float) -> float:
    """lambda = log(alpha / s) of a noise level; infinite without noise."""
    return -log(sigma) if sigma > 0.0 else inf


def signal_and_noise(sigma: float) -> tuple[float, float]:
    """The pair (alpha, s) of a noise level."""
    alpha = 1.0 / sqrt(1.0 + sigma**2)
    return alpha, sigma * alpha


@dataclass(kw_only=True)
class DpmSolver:
    """Order up to 3; `sde-dpmsolver++` draws one array for each step that does not end without noise, in their order."""

    kind: str
    setup: SamplerSetup
    sampling: SamplingSchedule
    sigmas: tuple[float, ...]
    outputs: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        i = step.index
        x0, eps = self.setup.estimate(step, self.sampling.abars[i])
        self.outputs = [eps if self.kind == "dpmsolver" else x0, *self.outputs][: self.setup.settings.solver_order]
        d = self._differences(i, min(self._order(i), len(self.outputs)))
        h = log_ratio(self.sigmas[i + 1]) - log_ratio(self.sigmas[i])
        (alpha, s), (alpha_next, s_next) = (signal_and_noise(sigma) for sigma in self.sigmas[i : i + 2])
        match self.kind:
            case "dpmsolver":
                return alpha_next / alpha * step.state - s_next * self._integral(d, h)
            case "dpmsolver++":
                return s_next / s * step.state - alpha_next * self._integral(d, -h)
        x = s_next / s * exp(-h) * step.state - alpha_next * self._integral(d, -2.0 * h)
        return x if s_next == 0.0 else x + s_next * sqrt(-expm1(-2.0 * h)) * self.setup.rng.standard_normal(x.shape)

    def _order(self, i: int) -> int:
        settings, steps = self.setup.settings, len(self.sampling.timesteps)
        few = settings.lower_order_final and steps < FEW_STEPS
        if i == steps - 1 and (settings.euler_at_final or few or self.sigmas[-1] == 0.0):
            return 1
        return min(settings.solver_order, 2) if i == steps - 2 and few else settings.solver_order

    def _differences(self, i: int, order: int) -> list[Array]:
        """D_0 to D_{order-1}, in units of the next step."""
        m = self.outputs
        if order == 1:
            return m[:1]
        ratios = [log_ratio(sigma) for sigma in self.sigmas[i - order + 1 : i + 2]][::-1]
        h = ratios[0] - ratios[1]
        r0 = (ratios[1] - ratios[2]) / h
        first = (m[0] - m[1]) / r0
        if order == 2:
            return [m[0], first]
        r1 = (ratios[2] - ratios[3]) / h
        bend = (first - (m[1] - m[2]) / r1) / (r0 + r1)
        return [m[0], first + r0 * bend, bend]

    def _integral(self, d: list[Array], z: float) -> Array:
        """E D_0 + g_1 D_1 + g_2 D_2, as far as there are any."""
        e = expm1(z)
        total = e * d[0]
        if len(d) == 2 and self.setup.settings.solver_type != "heun":
            return total + 0.5 * e * d[1]
        if len(d) >= 2:
            total = total + (e / z - 1.0) * d[1]
        return total if len(d) < 3 else total + ((e - z) / z**2 - 0.5) * d[2]


def make_dpmsolver(kind: str, setup: SamplerSetup) -> DpmSolver:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has room for, or none.
        UnsupportedError: `dpmsolver` that ends without noise, where it divides by 0, or `sde-dpmsolver++` of order 3.
    """
    next_step = "choose dpmsolver++"
    if kind == "dpmsolver" and setup.settings.final_sigmas_type == "zero":
        raise UnsupportedError(mismatch("sampler 'dpmsolver'", "final_sigmas_type sigma_min", "zero", next_step))
    if kind == "sde-dpmsolver++" and setup.settings.solver_order == 3:
        raise UnsupportedError(mismatch("sampler 'sde-dpmsolver++'", "solver_order 1 or 2", 3, next_step))
    timesteps, sigmas = solver_path(kind, setup.schedule, setup.steps, setup.settings)
    return DpmSolver(kind=kind, setup=setup, sampling=solver_schedule(timesteps, sigmas), sigmas=tuple(sigmas))
