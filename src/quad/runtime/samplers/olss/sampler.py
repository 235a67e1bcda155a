"""OLSS, the sampler: each state is a weighted sum of the first noise and of all model outputs so far.

    symbol   here          meaning
    x_T      `noise`       the first state, unit noise
    e_j      `outputs`     raw network output of step j, after guidance
    w_k      `table.w`     weight of x_T in the state after step k
    v_kj     `table.v`     weight of e_j in the state after step k

    x_{k+1} = w_k x_T + sum_{j<=k} v_kj e_j

Source: Duan et al. 2023 (arXiv 2305.14677), section 3; method.md section 6. Tables are made by `solve_olss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.manifest import OlssTable, SamplerSpec
from quad.runtime.samplers.contract import Call, Job, Route, preserving_route
from quad.runtime.samplers.schedule import Array


def checked_table(spec: SamplerSpec, most: int) -> OlssTable:
    """The sampler's table, when it is there, whole, and made for this number of steps; `most` is the schedule's length.

    Raises:
        UsageError: another number of steps was asked for than the table was solved for.
        InputError: the table is missing or not well-formed.
    """
    table, then = spec.olss, "rebuild the adapter"
    if table is None:
        raise InputError(mismatch("sampler 'olss'", "a solved table", "none", then))
    steps = len(table.timesteps)
    if steps != spec.steps:
        raise UsageError(mismatch("sampler 'olss'", f"{steps} steps, as solved", spec.steps, "ask for that number or another sampler"))
    rows = [len(row) for row in table.v]
    if not steps or len(table.w) != steps or rows != list(range(1, steps + 1)):
        raise InputError(mismatch("olss table", f"{steps} weights and rows of 1 to {steps}", f"{len(table.w)} and {rows}", then))
    if not all(0 <= t < most for t in table.timesteps):
        raise InputError(mismatch("olss table", f"timesteps 0 to {most - 1}", list(table.timesteps), then))
    return table


@dataclass
class Olss:
    """Deterministic; keeps x_T and every output."""

    route: Route
    table: OlssTable
    noise: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)

    def advance(self, call: Call) -> Array:
        """One step."""
        k = call.index
        if k == 0:
            self.noise = [call.held]
        self.outputs.append(call.output)
        return np.asarray(self.table.w[k] * self.noise[0] + np.tensordot(np.asarray(self.table.v[k]), np.stack(self.outputs), axes=1))


def make_olss(spec: SamplerSpec, job: Job) -> Olss:
    """The sampler of a job; errors as in `checked_table`."""
    table = checked_table(spec, job.schedule.steps)
    return Olss(preserving_route(job.schedule, table.timesteps), table)
