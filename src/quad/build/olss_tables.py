"""OLSS tables for tasks that ask for that sampler and bring none: solved on the float network's own runs.

Source: docs/method.md section 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
from torch import nn

from quad.core.errors import InputError, mismatch
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.slots import SlotTable
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.torch_session import bind_slots, torch_sessions
from quad.runtime.conditioning.condition import Pictures
from quad.runtime.conditioning.denoising import RunInputs, draw_noise, plan_run, session_encoders
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.samplers import Trajectory, record_trajectory, solve_olss

TEACHER = SamplerSpec(kind="ddim", steps=20)
RUNS_PER_TASK = 4


def unsolved(tasks: Mapping[str, TaskSpec]) -> tuple[str, ...]:
    """Tasks whose sampler is OLSS without a table."""
    return tuple(name for name, spec in tasks.items() if spec.sampler.kind == "olss" and spec.sampler.olss is None)


def with_teachers(base: Base) -> Base:
    """The base with many steps in place of a sampler that is not solved yet."""
    tasks = {name: msgspec.structs.replace(base.tasks[name], sampler=TEACHER) for name in unsolved(base.tasks)}
    return replace(base, tasks={**base.tasks, **tasks})


def solve_tasks(base: Base, networks: Mapping[str, nn.Module], table: SlotTable, adapters: Sequence[FloatAdapter],
                samples: Sequence[CalibrationSample]) -> Base:  # fmt: skip
    """The base with an OLSS table in every task that lacks one.

    Raises:
        InputError: a task to solve has no calibration sample.
    """
    tasks = dict(base.tasks)
    for name in unsolved(base.tasks):
        runs = [sample for sample in samples if sample.task == name][:RUNS_PER_TASK]
        if not runs:
            raise InputError(mismatch(f"task {name}", "a calibration sample to solve its OLSS sampler on", "none", "give one"))
        teacher = _Teacher(base, networks=networks, table=table, adapters=adapters)
        solved = solve_olss([teacher.run(sample, index) for index, sample in enumerate(runs)], tasks[name].sampler.steps)
        tasks[name] = msgspec.structs.replace(tasks[name], sampler=msgspec.structs.replace(tasks[name].sampler, olss=solved))
    return replace(base, tasks=tasks)


class _Teacher:
    """The float pipeline with many steps."""

    def __init__(self, base: Base, *, networks: Mapping[str, nn.Module], table: SlotTable, adapters: Sequence[FloatAdapter]) -> None:
        self._base = base
        self._sessions = torch_sessions(base, networks, table)
        self._tokenizer = Tokenizer(base.tokenizer, base.text)
        self._slots = BalancedSlots(adapters, table)

    def run(self, sample: CalibrationSample, seed: int) -> Trajectory:
        """One picture's states and outputs."""
        base, spec = self._base, self._base.tasks[sample.task]
        bind_slots(self._sessions, self._slots.get(sample.adapter or spec.adapter or "", {}))
        _, noise = draw_noise(seed, None, base)
        pictures = Pictures(sample.image, sample.mask)
        inputs = RunInputs(task=sample.task, spec=spec, pictures=pictures, prompt=sample.prompt, noise=noise)
        plan = plan_run(session_encoders(self._sessions, self._tokenizer), base, inputs)
        return record_trajectory(TEACHER, base.schedule, plan.network, noise)
