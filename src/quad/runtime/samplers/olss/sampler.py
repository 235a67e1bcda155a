"""OLSS, the sampler: each state is a weighted sum of the first noise and of all model outputs so far.

    symbol   here          meaning
    x_T      `noise`       the first state, unit noise
    e_j      `outputs`     raw network output of step j, after guidance
    w_k      `table.w`     weight of x_T in the state after step k
    v_kj     `table.v`     weight of e_j in the state after step k

    x_{k+1} = w_k x_T + sum_{j<=k} v_kj e_j

Source: Duan et al. 2023 (arXiv 2305.14677), section 3; docs/method.md section 6. Tables are made by `solve_olss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.manifest import OlssTable, SamplerSpec
from quad.runtime.samplers.contract import SamplerSetup, SamplerStep, SamplingSchedule, preserving_schedule
from quad.runtime.samplers.schedule import Array


def checked_table(spec: SamplerSpec, most: int) -> OlssTable:
    """The sampler's table, when it is there, whole, and made for this number of steps; `most` is the schedule's length.

    Raises:
        UsageError: another number of steps was asked for than the table was solved for.
        InputError: the table is missing or not well-formed.
    """
    table, next_step = spec.olss, "rebuild the adapter"
    if table is None:
        raise InputError(mismatch("sampler 'olss'", "a solved table", "none", next_step))
    steps = len(table.timesteps)
    if steps != spec.steps:
        raise UsageError(mismatch("sampler 'olss'", f"{steps} steps, as solved", spec.steps, "ask for that number or another sampler"))
    rows = [len(row) for row in table.v]
    if not steps or len(table.w) != steps or rows != list(range(1, steps + 1)):
        raise InputError(mismatch("olss table", f"{steps} weights and rows of 1 to {steps}", f"{len(table.w)} and {rows}", next_step))
    if not all(0 <= t < most for t in table.timesteps):
        raise InputError(mismatch("olss table", f"timesteps 0 to {most - 1}", list(table.timesteps), next_step))
    return table


@dataclass(kw_only=True)
class Olss:
    """Deterministic; keeps x_T and every output."""

    sampling: SamplingSchedule
    table: OlssTable
    noise: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)

    def advance(self, step: SamplerStep) -> Array:
        """One step."""
        k = step.index
        if k == 0:
            self.noise = [step.state]
        self.outputs.append(step.output)
        return np.asarray(self.table.w[k] * self.noise[0] + np.tensordot(np.asarray(self.table.v[k]), np.stack(self.outputs), axes=1))


def make_olss(spec: SamplerSpec, setup: SamplerSetup) -> Olss:
    """The sampler of a setup; errors as in `checked_table`."""
    table = checked_table(spec, setup.schedule.steps)
    return Olss(sampling=preserving_schedule(setup.schedule, table.timesteps), table=table)
