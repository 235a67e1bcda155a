"""UniPC: a multistep predictor, and each state corrected with the network's answer at it before the next step is taken.

    symbol       here            meaning
    alpha, s     `alpha, s`      sqrt(abar) and sqrt(1 - abar)
    lambda       `log_ratio`     log(alpha / s)
    h            `h`             lambda_next - lambda
    m            `outputs`       estimated clean latents, newest first
    r_k          `ratios`        (lambda_k - lambda) / h of earlier steps, and 1 for the next
    D_k          `slopes`        (m_k - m_0) / r_k
    B(h)         `b_h`           -h (bh1) or e^{-h} - 1 (bh2)
    rho          `_rhos`         weights of the D_k: solve R rho = b, R_jk = r_k^j, b_j = j! h phi_{j+1}(-h) / B(h)

    x_next = (s_next / s) x - alpha_next ((e^{-h} - 1) m_0 + B(h) sum rho_k D_k)

The corrector is the same rule with the new answer as one more D; the step is taken again, from where it began.
Source: Zhao et al. 2023, Eqs. 3 to 9 and appendix (data prediction); numbers as diffusers' UniPCMultistepScheduler with `predict_x0`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import expm1

import numpy as np

from quad.core.errors import UnsupportedError, mismatch
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, solver_schedule
from quad.runtime.samplers.dpmsolver import log_ratio, signal_and_noise
from quad.runtime.samplers.schedule import Array, solver_path


def _right_side(z: float, b_h: float, order: int) -> list[float]:
    """b_1 to b_order."""
    terms, factorial, phi = [], 1.0, expm1(z) / z - 1.0
    for j in range(1, order + 1):
        terms.append(phi * factorial / b_h)
        factorial *= j + 1
        phi = phi / z - 1.0 / factorial
    return terms


def _rhos(ratios: list[float], z: float, b_h: float) -> list[float]:
    """The weights of as many slopes as there are ratios; one alone is 1/2, as in diffusers."""
    if len(ratios) == 1:
        return [0.5]
    matrix = np.vander(ratios, increasing=True).T
    return [float(rho) for rho in np.linalg.solve(matrix, _right_side(z, b_h, len(ratios)))]


@dataclass(kw_only=True)
class UniPc:
    """Order up to 3 (the corrector one more), deterministic; keeps the last answers and the state it last stepped from."""

    setup: SamplerSetup
    sampling: SamplingSchedule
    sigmas: tuple[float, ...]
    outputs: list[Array] = field(default_factory=list)
    begun: list[Array] = field(default_factory=list)
    order: int = 1

    def advance(self, step: SamplerStep) -> Array:
        """Correct the state that was reached, and take the next step."""
        i, settings, x = step.index, self.setup.settings, step.state
        x0, _ = self.setup.estimate(step, self.sampling.abars[i])
        if self.begun and i - 1 not in settings.disable_corrector:
            x = self._step(i - 1, self.begun[0], self.order, x0)
        self.outputs = [x0, *self.outputs][: settings.solver_order]
        room = len(self.sampling.timesteps) - i if settings.lower_order_final else settings.solver_order
        self.order = min(settings.solver_order, room, len(self.outputs))
        self.begun = [x]
        return self._step(i, x, self.order, None)

    def _step(self, i: int, x: Array, order: int, answer: Array | None) -> Array:
        """Step i from x, with `order` known outputs; `answer` is the one at its end, where the corrector has it."""
        m, log_ratio_i = self.outputs, log_ratio(self.sigmas[i])
        h = log_ratio(self.sigmas[i + 1]) - log_ratio_i
        (_, s), (alpha_next, s_next) = (signal_and_noise(sigma) for sigma in self.sigmas[i : i + 2])
        ratios = [(log_ratio(self.sigmas[i - k]) - log_ratio_i) / h for k in range(1, order)]
        slopes = [(m[k] - m[0]) / ratios[k - 1] for k in range(1, order)]
        if answer is not None:
            ratios, slopes = [*ratios, 1.0], [*slopes, answer - m[0]]
        integral = expm1(-h) * m[0]
        if slopes:
            b_h = -h if self.setup.settings.solver_type == "bh1" else expm1(-h)
            rhos = _rhos(ratios, -h, b_h)
            integral = integral + b_h * sum((rho * d for rho, d in zip(rhos, slopes, strict=True)), start=np.zeros_like(x))
        return s_next / s * x - alpha_next * integral


def make_unipc(setup: SamplerSetup) -> UniPc:
    """The sampler of a setup.

    Raises:
        UsageError: more steps than the schedule has room for, or none.
        UnsupportedError: a last step of higher order that ends without noise, where it divides by 0.
    """
    settings = setup.settings
    if settings.final_sigmas_type == "zero" and settings.solver_order > 1 and not settings.lower_order_final:
        raise UnsupportedError(mismatch("sampler 'unipc'", "lower_order_final, or final_sigmas_type sigma_min", "neither", "set one"))
    timesteps, sigmas = solver_path("unipc", setup.schedule, setup.steps, setup.settings)
    return UniPc(setup=setup, sampling=solver_schedule(timesteps, sigmas), sigmas=tuple(sigmas))
