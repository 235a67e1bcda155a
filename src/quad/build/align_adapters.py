"""Packing with alignment: every adapter rescaled to the frozen profile, and trained against the float network where steps are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from torch import nn

from quad.build import resumable_stages as kept_pieces
from quad.build.call_recorder import spread
from quad.build.request import BuildRequest
from quad.build.resume import Kept, kept_dir
from quad.build.write_bundle import PackedAdapter
from quad.core.errors import UsageError, mismatch
from quad.core.manifest import AdapterQuality
from quad.core.padding import trim
from quad.core.profile import Profile
from quad.core.progress import Progress, silent
from quad.core.slots import SlotTable
from quad.lora.read import FloatAdapter
from quad.model.base.modules import share_copy
from quad.model.base.open import Base
from quad.quantize.distill.denoising_examples import denoising_examples
from quad.quantize.distill.distill import Alignment, Distilled, TeacherStudent, distill
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall
from quad.quantize.distill.training import DistillOptions
from quad.quantize.observe.calibrate import CalibrationSample, plan_samples, with_adapter
from quad.quantize.observe.probes import Probe, ProbeOptions, Probes, interleave_tasks, record_probes
from quad.quantize.observe.torch_session import torch_sessions

RUNS = 6  # of each adapter; measured with 20 steps: sketch gains 1.0 dB from 3 runs and 2.6 dB from 6
MEASURED_CALLS = 4  # of each adapter's last run, where nothing is trained
SEED = 20_000  # other noise than calibration and sensitivity draw


def keep_float(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks as they are now: what bias correction writes later does not reach these; weights are shared."""
    return {name: share_copy(network) for name, network in networks.items()}


@dataclass(frozen=True)
class Aligner:
    """What adapters are aligned with.

    Args:
        teacher: float networks by component, of `keep_float`.
        student: the U-Net that will be compiled.
        table: float slots.
        samples: of calibration; those without an adapter are not used.
        probes: gives what adapters are measured on where nothing is trained, recorded with `teacher`.
    """

    base: Base
    teacher: Mapping[str, nn.Module]
    student: nn.Module
    table: SlotTable
    adapters: Sequence[FloatAdapter]
    samples: Sequence[CalibrationSample]
    probes: Callable[[], Probes]

    def pack(
        self, request: BuildRequest, profile: Profile, slots: SlotTable, progress: Progress = silent, kept: Kept | None = None
    ) -> tuple[tuple[PackedAdapter, ...], dict[str, Alignment]]:
        """Every adapter as integers of the profile, and what its alignment brought.

        Args:
            slots: with the integer types of the graph.
            progress: told which adapter is at work, and the share of adapters done.
            kept: adapters that an earlier run has aligned are taken from there; None keeps nothing but training's own checkpoints.

        Raises:
            CompatibilityError: an adapter does not fit the profile. BackendError: a checkpoint cannot be written.
        """
        if not self.adapters:
            return (), {}
        kept = kept or Kept(None)
        own = with_adapter(self.base, self.samples)
        probes = self._lessons(own, kept) if request.steps else {name: measured_on(some) for name, some in self.probes().items()}
        room = TeacherStudent(teacher=self.teacher["unet"], student=self.student, table=slots, profile=profile)
        packed: list[PackedAdapter] = []
        alignments: dict[str, Alignment] = {}
        for number, adapter in enumerate(self.adapters):
            progress(f"align {adapter.name}", number / len(self.adapters))

            def make(adapter: FloatAdapter = adapter) -> Distilled:
                options = DistillOptions(steps=request.steps, lambda_=request.lambda_, checkpoint=checkpoint_file(request, adapter.name))
                examples = self._examples(adapter.name, own, probes[adapter.name]) if request.lambda_ else []
                found = distill(room, adapter, probes[adapter.name], options, examples)
                return replace(found, integers=trim(found.integers, slots))

            found = kept_pieces.aligned(kept, adapter.name, make)
            quality = quality_of(found.alignment.after_distill or found.alignment.after_rescale)
            packed.append(PackedAdapter(adapter.name, found.integers, adapter.rank, adapter.digest, quality))
            alignments[adapter.name] = found.alignment
        return tuple(packed), alignments

    def _lessons(self, samples: Sequence[CalibrationSample], kept: Kept) -> Probes:
        """Calls to learn from, and to hold out."""
        how = ProbeOptions(per_adapter=RUNS, seed=SEED)
        return kept_pieces.probes(
            kept, "probes.align", lambda: record_probes(self.base, self.teacher, self.table, self.adapters, samples, how)
        )

    def _examples(self, name: str, samples: Sequence[CalibrationSample], probes: Sequence[Probe]) -> list[TeacherCall]:
        encoder = torch_sessions(self.base, self.teacher, self.table)["vae_encoder"]
        own = [sample for sample, _, adapter in interleave_tasks(plan_samples(self.base, samples, self.adapters)) if adapter == name]
        return denoising_examples(self.base, encoder, own, probes)


def quality_of(found: Fidelity) -> AdapterQuality:
    """What an adapter's manifest says of its fidelity."""
    effect_db, gain = (msgspec.UNSET if value is None else value for value in (found.effect_db, found.effect_gain))
    return AdapterQuality(output_db=found.output_db, effect_db=effect_db, effect_gain=gain)


def measured_on(probes: Sequence[Probe]) -> list[Probe]:
    """Of an adapter's last run, `MEASURED_CALLS` at most."""
    return spread([probe for probe in probes if probe.run == probes[-1].run], MEASURED_CALLS)


def require_truths(base: Base, adapters: Sequence[FloatAdapter], samples: Sequence[CalibrationSample]) -> None:
    """Refuse a lambda where an adapter has no sample with its true picture.

    Raises:
        UsageError: names the adapter.
    """
    known = {sample.adapter or base.tasks[sample.task].adapter for sample in samples if sample.truth is not None}
    for adapter in adapters:
        if adapter.name not in known:
            then = "leave it out: the teacher's runs are enough"
            raise UsageError(mismatch("--lambda", f"samples of adapter {adapter.name!r} with their true pictures", "none", then))


def checkpoint_file(request: BuildRequest, adapter: str) -> Path:
    """Of one adapter's training, beside the other pieces of the build."""
    return kept_dir(request) / f"distill.{adapter}.safetensors"
