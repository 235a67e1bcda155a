"""Probes: the inputs of single U-Net calls, taken along full-precision runs of the tasks, to compare networks on.

Every network that is compared reads the same inputs, so differences do not add up along a run. Source: docs/method.md section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.component_call import BASE_SOURCE
from quad.core.errors import InputError, mismatch
from quad.core.manifest import NoiseSchedule
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.observe.batched_calls import SlotArrays, batched_forward
from quad.quantize.observe.calibrate import CalibrationOptions, CalibrationSample, PlannedRun, TaskRunner, plan_samples
from quad.quantize.observe.probe import Probe as Probe
from quad.quantize.observe.probe import Probes as Probes
from quad.quantize.observe.probes_file import RECORDED
from quad.quantize.observe.torch_session import RecordingSession, torch_sessions
from quad.quantize.processes.dealt import together
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.samplers.schedule import alphas_cumprod

PER_ADAPTER = 2
# Far from the noise that calibration drew: the encodings have not seen these inputs.
PROBE_SEED = 10_000


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How probes are drawn; the k-th run of every adapter draws its noise from `seed + k`, so that adapters compare on one noise.

    Args:
        per_adapter: runs of each adapter, the first of its samples; None takes all.
        min_values: an adapter whose sampler has few steps goes on until its outputs have this many values, as far as its samples reach.
    """

    per_adapter: int | None = PER_ADAPTER
    min_values: int = 0
    seed: int = PROBE_SEED
    negative_prompt: str = ""


def record_probes(
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
    options: ProbeOptions | None = None,
) -> dict[str, list[Probe]]:  # fmt: skip
    """Run the tasks in full precision and keep the inputs of every U-Net call.

    Args:
        networks: float networks of `component_networks`.
        samples: as for `calibrate`, in the order of `interleave_tasks`; those without an adapter give the probes of `base`.

    Returns:
        Adapter name, or `base`, -> its probes in order of runs and steps; adapters first, in their own order.

    Raises:
        InputError: there is no sample, an adapter has none, or a sample's adapter is not there.
        UsageError: a sample's task is unknown.
    """
    if not samples:
        raise InputError(mismatch("probes", "at least one calibration sample", "none", "give samples for the tasks of this build"))
    plan, slots = interleave_tasks(plan_samples(base, samples, adapters)), BalancedSlots(adapters, table)
    planned: dict[str, list[PlannedRun]] = {name: [] for name in [*(a.name for a in adapters), BASE_SOURCE]}
    for run in plan:
        planned[run[2] or BASE_SOURCE].append(run)
    prober = _Prober(base=base, networks=networks, table=table, slots=slots, options=options or ProbeOptions())
    probes: dict[str, list[Probe]] = {source: [] for source in planned}
    begun = dict.fromkeys(planned, 0)  # runs of each source
    while asked := [
        (source, number) for source, runs in planned.items() for number in prober.following(probes[source], begun[source], len(runs))
    ]:
        recorded = together(lambda one: prober.along(*one, planned[one[0]][one[1]]), asked, RECORDED)
        for (source, number), calls in zip(asked, recorded, strict=True):
            probes[source] += calls
            begun[source] = number + 1
    return {source: calls for source, calls in probes.items() if calls}


@dataclass(frozen=True, kw_only=True)
class _Prober:
    """Records the probes of one run after the other, or of several at once."""

    base: Base
    networks: Mapping[str, nn.Module]
    table: SlotTable
    slots: BalancedSlots
    options: ProbeOptions

    def following(self, probes: Sequence[Probe], begun: int, planned: int) -> range:
        """Numbers of a source's runs to make next, of so many; none where its probes are enough.

        Args:
            probes: of the runs that were begun.
        """
        most = planned if self.options.per_adapter is None else min(planned, self.options.per_adapter)
        if begun < most:
            return range(begun, most)
        per_picture = self.base.latent.channels * math.prod(self.base.latent.grid(self.base.picture_size))
        enough = per_picture * sum(len(probe.inputs["sample"]) for probe in probes) >= self.options.min_values
        return range(begun, begun if enough else min(begun + 1, planned))

    def along(self, source: str, run: int, planned: PlannedRun) -> list[Probe]:
        """The probes of one run of a source."""
        base, options, recorder = self.base, self.options, _Recorder()
        sessions: dict[str, Any] = dict(torch_sessions(base, self.networks, self.table))
        runner = TaskRunner(
            base=base,
            sessions={**sessions, UNET: RecordingSession(sessions[UNET], UNET, recorder.record)},
            tokenizer=Tokenizer(base.tokenizer, base.text),
            options=CalibrationOptions(seed=options.seed, negative_prompt=options.negative_prompt),
        )
        sample, spec, name = planned
        runner.denoise(sample, spec, self.slots.get(name or "", {}), run)
        return [
            Probe(source=source, task=sample.task, run=run, inputs=inputs, sigma_t=noise_level(base.schedule, inputs), expected=output)
            for inputs, output in recorder.calls
        ]


def interleave_tasks(plan: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The plan with the tasks of every adapter taking turns, so that the first few runs of an adapter show all that it is used for."""
    counts: dict[tuple[str | None, str], int] = {}
    turns = []
    for sample, _, name in plan:
        counts[name, sample.task] = counts.get((name, sample.task), -1) + 1
        turns.append(counts[name, sample.task])
    return [plan[i] for i in sorted(range(len(plan)), key=lambda i: turns[i])]


def noise_level(schedule: NoiseSchedule, inputs: Mapping[str, NDArray[np.float32]]) -> float:
    """`sigma_t = sqrt(1 - abar_t)` at the call's timestep, interpolated where a sampler asks between training steps."""
    abar = alphas_cumprod(schedule)
    return float(np.sqrt(1.0 - np.interp(float(inputs["timestep"][0]), np.arange(len(abar)), abar)))


def teacher_outputs(network: nn.Module, probes: Sequence[Probe], slots: SlotArrays) -> list[Tensor]:
    """The float network's output `(B, c, h, w)` for every probe: as recorded, or computed where one of them was not run.

    Args:
        network: the float network; of recorded probes, the one that they were recorded with.
        slots: float slot inputs of the probes' own adapter, in whichever form: `(B G^-1)(G A)` gives what `B A` does.
    """
    recorded = [torch.tensor(probe.expected) for probe in probes if probe.expected is not None]
    return recorded if len(recorded) == len(probes) else batched_forward(network, [probe.tensors() for probe in probes], slots)


@final
class _Recorder:
    """Keeps a copy of the U-Net's inputs and output of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]] = []

    def record(self, component: str, inputs: Mapping[str, NDArray[Any]], output: NDArray[Any]) -> None:
        """A `CallHook`."""
        self.calls.append(({name: np.array(values, np.float32) for name, values in inputs.items()}, np.array(output, np.float32)))
