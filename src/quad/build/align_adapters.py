"""Packing with alignment: every adapter rescaled to the frozen profile, and trained against the float network where steps are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.build.calls.float_teacher import FloatTeacher, measured_on
from quad.build.choose_profile import ProfileStage
from quad.build.open_and_slot import SlottedModel
from quad.build.request import BuildRequest
from quad.build.resume import stages as resumable
from quad.build.resume.cache import BuildCache, cache_dir
from quad.core.manifest import AdapterQuality
from quad.core.padding import trim
from quad.core.precision import FLOAT
from quad.core.profile import Profile
from quad.core.progress import Progress, silent
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.distill.denoising_examples import denoising_examples
from quad.quantize.distill.distill import Alignment, Distilled, TeacherStudent, distill
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall
from quad.quantize.observe.calibrate import CalibrationSample, plan_samples, with_adapter
from quad.quantize.observe.probes import Probe, ProbeOptions, Probes, interleave_tasks, record_probes
from quad.quantize.observe.torch_session import torch_sessions
from quad.runtime.adapters.packed import PackedAdapter

RUNS = 6  # of each adapter; measured with 20 steps: sketch gains 1.0 dB from 3 runs and 2.6 dB from 6
SEED = 20_000  # other noise than calibration and sensitivity draw


@dataclass(frozen=True)
class AlignedAdapters:
    """The adapters as they ship, and what the alignment of each brought; empty where the graph is float."""

    packed: tuple[PackedAdapter, ...]
    alignments: Mapping[str, Alignment] = field(default_factory=dict)


def align_adapters(
    request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, profile: ProfileStage, progress: Progress
) -> AlignedAdapters:
    """The adapters as the graph reads them: floats, or integers aligned to the profile with the networks as they were in float.

    Raises:
        CompatibilityError: an adapter does not fit the profile. BackendError: a checkpoint cannot be written.
    """
    if profile.profile.mode == FLOAT:
        return AlignedAdapters(tuple(_pack_float(request, adapter, profile.slots) for adapter in model.adapters))
    aligner = Aligner(
        base=model.measured,
        teacher=teacher.networks,
        student=model.networks["unet"],
        table=model.table,
        adapters=model.adapters,
        samples=model.samples,
        probes=lambda: teacher.measured,
    )
    packed, alignments = aligner.pack(request, profile.profile, profile.slots, progress, model.cache, profile.group_of)
    return AlignedAdapters(packed, alignments)


def _pack_float(request: BuildRequest, adapter: FloatAdapter, slots: SlotTable) -> PackedAdapter:
    inputs = balanced_inputs(adapter, slots) if slots.normalised else slot_inputs(adapter, slots)
    return _packed(request, adapter, trim(inputs, slots))


def _packed(
    request: BuildRequest,
    adapter: FloatAdapter,
    tensors: Mapping[str, NDArray[np.generic]],
    quality: AdapterQuality | msgspec.UnsetType = msgspec.UNSET,
) -> PackedAdapter:
    defaults = adapter.defaults(request.adapter_defaults.get(adapter.name))
    return PackedAdapter(name=adapter.name, tensors=tensors, rank=adapter.rank, source=adapter.digest, quality=quality, defaults=defaults)


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """Networks, samples and calls that adapters are aligned with.

    Args:
        teacher: float networks by component, of `share_networks`; none where nothing is trained and the probes know their answers.
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
        self,
        request: BuildRequest,
        profile: Profile,
        slots: SlotTable,
        progress: Progress = silent,
        cache: BuildCache | None = None,
        group_of: Mapping[str, int] | None = None,
    ) -> tuple[tuple[PackedAdapter, ...], dict[str, Alignment]]:
        """Every adapter as integers of the profile, and what its alignment brought.

        Args:
            slots: with the integer types of the graph.
            group_of: adapter -> number of its group, counted from 0; the first where it is not there.
            progress: told which adapter is at work, and the share of adapters done.
            kept: adapters that an earlier run has aligned are taken from there; None keeps nothing but training's own checkpoints.

        Raises:
            CompatibilityError: an adapter does not fit the profile. BackendError: a checkpoint cannot be written.
        """
        if not self.adapters:
            return (), {}
        cache = cache or BuildCache(None)
        samples = with_adapter(self.base, self.samples)
        probes = (
            self._teacher_probes(samples, cache)
            if request.distill_steps
            else {name: measured_on(calls) for name, calls in self.probes().items()}
        )
        groups = group_of or {}

        def make(adapter: FloatAdapter) -> Distilled:
            one = profile.of_group(groups.get(adapter.name, 0))
            pair = TeacherStudent(teacher=self.teacher.get(UNET), student=self.student, table=slots, profile=one)
            options = DistillOptions(
                steps=request.distill_steps,
                effect_weight=request.quality.effect_weight,
                lambda_=request.lambda_,
                checkpoint=checkpoint_file(request, adapter.name),
            )
            examples = self._examples(adapter.name, samples, probes[adapter.name]) if request.lambda_ else []
            distilled = distill(pair, adapter, probes[adapter.name], options, examples)
            return replace(distilled, integers=trim(distilled.integers, slots))

        def following(adapters: Sequence[FloatAdapter]) -> Iterator[FloatAdapter]:
            done = len(self.adapters) - len(adapters)
            for number, adapter in enumerate(adapters, done):
                progress(f"align {adapter.name}", number / len(self.adapters))
                yield adapter

        aligned = resumable.aligned(cache, self.adapters, make, following, dealt_steps=bool(request.distill_steps))
        packed = [
            replace(_packed(request, adapter, result.integers, _quality_of(result)), group=groups.get(adapter.name, 0))
            for adapter, result in zip(self.adapters, aligned, strict=True)
        ]
        return tuple(packed), {adapter.name: result.alignment for adapter, result in zip(self.adapters, aligned, strict=True)}

    def _teacher_probes(self, samples: Sequence[CalibrationSample], cache: BuildCache) -> Probes:
        """Calls to learn from, and to hold out."""
        options = ProbeOptions(per_adapter=RUNS, seed=SEED)
        return resumable.probes(
            cache, "probes.align", lambda: record_probes(self.base, self.teacher, self.table, self.adapters, samples, options)
        )

    def _examples(self, name: str, samples: Sequence[CalibrationSample], probes: Sequence[Probe]) -> list[TeacherCall]:
        encoder = torch_sessions(self.base, self.teacher, self.table)["vae_encoder"]
        mine = [sample for sample, _, adapter in interleave_tasks(plan_samples(self.base, samples, self.adapters)) if adapter == name]
        return denoising_examples(self.base, encoder, mine, probes)


def quality_of(fidelity: Fidelity) -> AdapterQuality:
    """The fidelity as an adapter's manifest says it."""
    effect_db, gain = (msgspec.UNSET if value is None else value for value in (fidelity.effect_db, fidelity.effect_gain))
    return AdapterQuality(output_db=fidelity.output_db, effect_db=effect_db, effect_gain=gain)


def _quality_of(distilled: Distilled) -> AdapterQuality:
    return quality_of(distilled.alignment.after_distill or distilled.alignment.after_rescale)


def checkpoint_file(request: BuildRequest, adapter: str) -> Path:
    """Of one adapter's training, beside the other pieces of the build."""
    return cache_dir(request) / f"distill.{adapter}.safetensors"
