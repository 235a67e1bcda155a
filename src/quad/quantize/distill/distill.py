"""Alignment by distillation: LoRA weights learn to undo what the shared encodings did.

Source: QUAD, alignment step; docs/method.md sections 1 and 3.

Teacher: the float network with the original adapter. Student: the simulated network with the adapter in its slots' frozen encodings,
first rescaled (or normalised), then, where steps are asked for, trained (`training`). No data is needed: the calls to learn from are those
of the teacher's own runs. Only the adapter's A and B change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.digests import digest
from quad.core.profile import Profile
from quad.core.slots import UNET, Slot, SlotTable
from quad.lora.fit.integers import balance, dequantize_adapter, quantize_inputs, rescaled_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.quantize.correct.simulate import simulated
from quad.quantize.distill.checkpoint import Checkpoint
from quad.quantize.distill.gradients import TrainingSet
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall, call_teacher, fidelity, fingerprint
from quad.quantize.distill.training import Progress, silent, train
from quad.quantize.observe.batched_calls import SlotArrays, batched_forms
from quad.quantize.observe.probes import Probe

_HELD_OUT = 4  # one run in four is held out, one at least


@dataclass(frozen=True, kw_only=True)
class TeacherStudent:
    """Teacher and student.

    Args:
        teacher: float slotted network, its biases as trained; None where the probes know all its answers.
        student: the slotted network that will be compiled; corrected biases are its own.
        table: its slots, with the integer types of the graph.
        profile: frozen.
    """

    teacher: nn.Module | None
    student: nn.Module
    table: SlotTable
    profile: Profile


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The gain of each step of the alignment on held-out calls: runs that no weight was trained on, by which the best weights were kept.

    Where nothing is trained, these are all calls. An adapter of a single run has nothing to hold out: it is measured on the calls that it
    learned from.

    Args:
        before: the balanced adapter in the profile's encodings.
        after_rescale: aligned to them by rescaling.
        after_distill: trained; None where no step was asked for.
        steps: of training that were taken.
    """

    before: Fidelity
    after_rescale: Fidelity
    after_distill: Fidelity | None = None
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """SQNR of the output as `before_db`, `after_rescale_db`, `after_distill_db`, the effect's under `effect`, and `steps`."""
        steps = {"before": self.before, "after_rescale": self.after_rescale, "after_distill": self.after_distill or self.after_rescale}
        effect = {name: {"db": step.effect_db, "gain": step.effect_gain} for name, step in steps.items()}
        return {**{f"{name}_db": step.output_db for name, step in steps.items()}, "effect": effect, "steps": self.steps}


@dataclass(frozen=True)
class Distilled:
    """An aligned adapter: its integers, ready to bind, with the scales of normalised slots beside them, and how it got there."""

    integers: dict[str, NDArray[Any]]
    alignment: Alignment


def distill(
    pair: TeacherStudent,
    adapter: FloatAdapter,
    probes: Sequence[Probe],
    options: DistillOptions,
    examples: Sequence[TeacherCall] = (),
    progress: Progress = silent,
) -> Distilled:
    """Align an adapter to the frozen profile: by rescaling, then by training if steps are asked for.

    What it has in the text encoder is rescaled and not trained: teacher calls are of the U-Net, which reads hidden states made in float
    with the adapter. An adapter with nothing in the U-Net takes no step.

    Under `accelerate launch` every process calls this with the same arguments, shares the work and gets the same result.

    Args:
        probes: the adapter's own calls along teacher runs.
        examples: calls whose `target` is the exact answer, for lambda.

    Raises:
        UsageError: an option is out of its range. InputError: there is no probe, or a weight is NaN or infinite.
        CompatibilityError: the adapter does not fit the profile.
    """
    options.check(bool(examples))
    # 1. rescale
    original, start = slot_inputs(adapter, pair.table), rescaled_inputs(adapter, pair.table, pair.profile)
    integers = quantize_inputs(adapter.name, start, pair.table, pair.profile)
    # 2. the teacher's outputs, and the student's without an adapter
    training, held_out = split_runs(probes) if options.steps else ([], list(probes))
    calls = call_teacher(pair.teacher, original, [*held_out, *training])
    inputs = [call.inputs for call in calls]
    forms: list[SlotArrays] = [dequantize_adapter(integers, pair.table, pair.profile)]
    if not pair.table.normalised:  # a normalised adapter fits as it is: there is nothing to rescale
        forms.append(_plain(adapter, pair))
    with simulated(pair.student, pair.profile, UNET):
        bases, *answers = batched_forms(pair.student, [(inputs, {}), *((inputs[: len(held_out)], form) for form in forms)])
        with_bases = list(zip(calls, bases, strict=True))
        # Too few runs to hold one out: then all calls are checked on that are learned from.
        training_set = TrainingSet(
            with_bases[len(held_out) :] or with_bases, with_bases[: len(held_out)], examples if options.lambda_ else ()
        )
        after, *plain = (fidelity(calls[: len(held_out)], outputs, bases[: len(held_out)]) for outputs in answers)
        before = plain[0] if plain else after
        if options.steps == 0 or not _trainable(pair, adapter):
            return Distilled(integers, Alignment(before=before, after_rescale=after))
        # 3. train
        identity = _identity(pair, adapter, options, [calls, training_set.examples, _base_calls(with_bases)])
        trained, steps = train(_student(pair, adapter, start), training_set, options, Checkpoint(options.checkpoint, identity), progress)
        integers = quantize_inputs(adapter.name, {**start, **trained}, pair.table, pair.profile)
        final = _measured(pair, training_set.held_out, dequantize_adapter(integers, pair.table, pair.profile))
    return Distilled(integers, Alignment(before=before, after_rescale=after, after_distill=final, steps=steps))


def _base_calls(with_bases: Sequence[tuple[TeacherCall, Tensor]]) -> list[TeacherCall]:
    """The calls with the student's outputs without an adapter as targets: its own corrected biases are in them."""
    return [replace(call, target=base) for call, base in with_bases]


def split_runs(probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Probes to learn from and probes to check on: one run in four, since calls of one run are alike; a single run is all checked on."""
    runs = sorted({probe.run for probe in probes})
    held_out = set(runs[-max(1, len(runs) // _HELD_OUT) :])
    return [probe for probe in probes if probe.run not in held_out], [probe for probe in probes if probe.run in held_out]


def _identity(pair: TeacherStudent, adapter: FloatAdapter, options: DistillOptions, material: Sequence[Sequence[TeacherCall]]) -> str:
    """Digest of all that the training is made from, wherever its checkpoint lies."""
    return digest([adapter.digest, pair.profile.digest, repr(replace(options, checkpoint=None)), *map(fingerprint, material)])


def _student(pair: TeacherStudent, adapter: FloatAdapter, start: SlotArrays) -> Student:
    names = [name for slot in _trainable(pair, adapter) for name in (slot.a_name, slot.b_name)]
    return Student(pair.student, encodings=pair.profile.component(UNET), start=start, names=names)


def _trainable(pair: TeacherStudent, adapter: FloatAdapter) -> list[Slot]:
    """The adapter's slots in the U-Net."""
    return [slot for slot in pair.table.slots if slot.path in adapter.weights and slot.component == UNET]


def _measured(pair: TeacherStudent, with_bases: Sequence[tuple[TeacherCall, Tensor]], slots: SlotArrays) -> Fidelity:
    calls, bases = [call for call, _ in with_bases], [base for _, base in with_bases]
    return fidelity(calls, batched_forms(pair.student, [([call.inputs for call in calls], slots)])[0], bases)


def _plain(adapter: FloatAdapter, pair: TeacherStudent) -> SlotArrays:
    """The balanced adapter in the profile's encodings, clipped where it must be."""
    encodings, inputs = pair.profile.component(UNET), slot_inputs(balance(adapter), pair.table)
    return {name: encodings[name].dequantize(encodings[name].quantize(inputs[name])) for name in pair.table.of(UNET).input_shapes()}
