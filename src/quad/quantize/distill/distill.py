"""Alignment by distillation: LoRA weights learn to undo what the shared encodings did.

Source: QUAD, alignment step; docs/method.md sections 1 and 3.

Teacher: the float network with the original adapter. Student: the simulated network with the adapter in its slots' frozen encodings,
first rescaled (`align`), then, where steps are asked for, trained (`training`). No data is needed: the calls to learn from are those of the
teacher's own runs. Only the adapter's weights change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.digests import digest
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.lora.read import FloatAdapter
from quad.model.slots.network import slot_inputs
from quad.quantize.correct.simulate import simulated
from quad.quantize.distill.checkpoint import Checkpoint
from quad.quantize.distill.student import Student
from quad.quantize.distill.teacher_calls import Fidelity, Lesson, fidelity, fingerprint, lessons_of
from quad.quantize.distill.training import Desk, DistillOptions, Progress, silent, train
from quad.quantize.encodings.integers import aligned_inputs, balance, dequantize_adapter, quantize_inputs
from quad.quantize.observe.batched_calls import SlotArrays, answers
from quad.quantize.observe.probes import Probe

_COMPONENT = "unet"
_HELD_OUT = 4  # one run in four is held out, one at least


@dataclass(frozen=True)
class Classroom:
    """Teacher and student.

    Args:
        teacher: float slotted network, its biases as trained.
        student: the slotted network that will be compiled; corrected biases are its own.
        table: its slots, with the integer types of the graph.
        profile: frozen.
    """

    teacher: nn.Module
    student: nn.Module
    table: SlotTable
    profile: Profile


@dataclass(frozen=True)
class Alignment:
    """What each step of the alignment brought, on held-out calls: runs that no weight was trained on, by which the best weights were kept.

    An adapter of a single run has nothing to hold out: it is measured on the calls that it learned from.

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
        found = {"before": self.before, "after_rescale": self.after_rescale, "after_distill": self.after_distill or self.after_rescale}
        effect = {name: {"db": one.effect_db, "gain": one.effect_gain} for name, one in found.items()}
        return {**{f"{name}_db": one.output_db for name, one in found.items()}, "effect": effect, "steps": self.steps}


@dataclass(frozen=True)
class Distilled:
    """An aligned adapter: its integers, ready to bind, and how it got there."""

    integers: dict[str, NDArray[np.integer]]
    alignment: Alignment


def distill(room: Classroom, adapter: FloatAdapter, probes: Sequence[Probe], options: DistillOptions, examples: Sequence[Lesson] = (),
            progress: Progress = silent) -> Distilled:  # fmt: skip
    """Align an adapter to the frozen profile: by rescaling, then by training if steps are asked for.

    What it has in the text encoder is rescaled and not trained: lessons are calls of the U-Net, which read hidden states made in float
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
    own, start = slot_inputs(adapter, room.table), aligned_inputs(adapter, room.table, room.profile)
    integers = quantize_inputs(adapter.name, start, room.table, room.profile)
    learned, held = split_runs(probes)
    lessons = lessons_of(room.teacher, own, [*held, *learned] if options.steps else held)
    with simulated(room.student, room.profile, _COMPONENT):
        pairs = list(zip(lessons, answers(room.student, [lesson.inputs for lesson in lessons], {}), strict=True))
        # Too few runs to hold one out: then all calls are checked on that are learned from.
        desk = Desk(pairs[len(held) :] or pairs, pairs[: len(held)], examples if options.lambda_ else ())
        before = _measured(room, desk.held_out, _plain(adapter, room))
        after = _measured(room, desk.held_out, dequantize_adapter(integers, room.table, room.profile))
        if options.steps == 0 or not _trainable(room, adapter):
            return Distilled(integers, Alignment(before, after))
        identity = _identity(room, adapter, options, [lessons, desk.examples, _silent(pairs)])
        trained, steps = train(_student(room, adapter, start), desk, options, Checkpoint(options.checkpoint, identity), progress)
        integers = quantize_inputs(adapter.name, {**start, **trained}, room.table, room.profile)
        final = _measured(room, desk.held_out, dequantize_adapter(integers, room.table, room.profile))
    return Distilled(integers, Alignment(before, after, final, steps))


def _silent(pairs: Sequence[tuple[Lesson, Tensor]]) -> list[Lesson]:
    """What the student says without an adapter: its own corrected biases are in it."""
    return [replace(lesson, target=base) for lesson, base in pairs]


def split_runs(probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Probes to learn from and probes to check on: one run in four, since calls of one run are alike; a single run is all checked on."""
    runs = sorted({probe.run for probe in probes})
    held = set(runs[-max(1, len(runs) // _HELD_OUT) :])
    return [probe for probe in probes if probe.run not in held], [probe for probe in probes if probe.run in held]


def _identity(room: Classroom, adapter: FloatAdapter, options: DistillOptions, material: Sequence[Sequence[Lesson]]) -> str:
    """Digest of all that the training is made from, wherever its checkpoint lies."""
    return digest([adapter.digest, room.profile.digest, repr(replace(options, checkpoint=None)), *map(fingerprint, material)])


def _student(room: Classroom, adapter: FloatAdapter, start: SlotArrays) -> Student:
    names = [name for slot in _trainable(room, adapter) for name in (slot.a_name, slot.b_name)]
    return Student(room.student, room.profile.component(_COMPONENT), start, names)


def _trainable(room: Classroom, adapter: FloatAdapter) -> list[Slot]:
    """The adapter's slots in the U-Net."""
    return [slot for slot in room.table.slots if slot.path in adapter.weights and slot.component == _COMPONENT]


def _measured(room: Classroom, pairs: Sequence[tuple[Lesson, Tensor]], slots: SlotArrays) -> Fidelity:
    lessons, bases = [lesson for lesson, _ in pairs], [base for _, base in pairs]
    return fidelity(lessons, answers(room.student, [lesson.inputs for lesson in lessons], slots), bases)


def _plain(adapter: FloatAdapter, room: Classroom) -> SlotArrays:
    """The balanced adapter in the profile's encodings, clipped where it must be."""
    encodings = room.profile.component(_COMPONENT)
    inputs = slot_inputs(balance(adapter), room.table)
    own = room.table.of(_COMPONENT).input_shapes()
    return {name: encodings[name].dequantize(encodings[name].quantize(inputs[name])) for name in own}
