"""The adapter in the bundle's numbers: rescaled to the frozen encodings, and with the base at hand trained and measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quad.admit.request import AdaptRequest
from quad.admit.slots import Fitted, with_gains
from quad.admit.with_base import BaseNetworks, measure_fidelity, samples_for
from quad.core.errors import CompatibilityError, mismatch
from quad.core.manifest import TaskSpec
from quad.core.slots import UNET
from quad.lora.fit.integers import quantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.distill.distill import Alignment
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall
from quad.runtime.adapter_defaults import reachable_strength, with_defaults
from quad.runtime.adapters.buffers import Buffers, pad, zero_buffers
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Session
from quad.runtime.request import TEXT_TO_IMAGE

# Beyond these the adapter's effect comes through as something else: its noise is half as large as itself, or its size is off by half.
# Toyland's six have 25 dB and more, and 0.998 to 1.006 of it.
LEAST_EFFECT_DB, EFFECT_GAIN = 6.0, (0.5, 1.5)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Admission:
    """One admission, opened.

    Args:
        tasks: the adapter's task and how it runs; empty for an adapter that has none.
        base: the model that the bundle was built from, where it is at hand.
    """

    request: AdaptRequest
    bundle: Bundle
    tasks: Mapping[str, TaskSpec]
    base: Base | None


@dataclass(frozen=True, kw_only=True)
class AlignedAdapter:
    """The adapter in the bundle's numbers, and how it got there; with the base, how near its own graph comes to float.

    Args:
        teacher_calls: that the fidelity was measured on.
        trained: it is no longer the product that was fitted to the slots.
    """

    buffers: Buffers
    alignment: Alignment | None = None
    fidelity: Fidelity | None = None
    teacher_calls: Sequence[TeacherCall] = ()
    trained: bool = False
    notes: tuple[str, ...] = ()


def rescale(bundle: Bundle, fitted: Fitted) -> AlignedAdapter:
    """Rescaled to the frozen encodings; in a float bundle as it is."""
    if not bundle.profile.encodings:
        return AlignedAdapter(buffers=Buffers(slot_inputs(fitted.adapter, bundle.slots)))
    return AlignedAdapter(buffers=Buffers(quantize_adapter(fitted.adapter, bundle.slots, bundle.profile)))


def align_with_base(admission: Admission, base: Base, session: Session, adapter: FloatAdapter, fitted: Fitted) -> AlignedAdapter:
    """Aligned by rescaling and training, and measured on the bundle's own graph; what was trained is kept where it is nearer there.

    Args:
        adapter: as it was trained.
        fitted: as it was brought to the slots.

    Raises:
        CompatibilityError: the adapter's effect does not come through. InputError: there is no sample of its task.
    """
    request, bundle = admission.request, admission.bundle
    task, spec = _measured_task(admission, base)
    networks = BaseNetworks.of(bundle, base, {task: spec}, with_gains(adapter, bundle.profile))
    probes = networks.probes(samples_for(request, task, spec))

    # The forms to choose from: rescaled, and trained where training was asked for and took place.
    forms, alignment = [rescale(bundle, fitted).buffers], None
    if bundle.profile.encodings:
        options = DistillOptions(steps=request.steps(bundle.manifest.precision))
        distilled = networks.align(fitted.adapter, probes, options)
        alignment = distilled.alignment
        if alignment.steps:
            forms.append(Buffers(pad(distilled.integers, zero_buffers(bundle.slots))))

    # The nearest to float on calls that nothing was trained on.
    teacher_calls = networks.held_out(probes)
    fidelities = measure_fidelity(bundle, session, teacher_calls, forms)
    best = max(range(len(forms)), key=lambda index: fidelities[index].output_db)
    if UNET in fitted.components:
        _refuse_poor(request.name, fidelities[best])
    notes = () if best == len(forms) - 1 else (_worsened(fidelities),)
    _log.info("adapter %s: %s, output right to %s", request.name, ("rescaled", "trained")[best], _db(fidelities[best]))
    return AlignedAdapter(
        buffers=forms[best],
        alignment=alignment,
        fidelity=fidelities[best],
        teacher_calls=teacher_calls,
        trained=best > 0,
        notes=notes,
    )


def _measured_task(admission: Admission, base: Base) -> tuple[str, TaskSpec]:
    """The adapter's task; for one that has none text-to-image as it wants it, or the first of the base's where it has no such task."""
    if admission.tasks:
        return next(iter(admission.tasks.items()))
    task = TEXT_TO_IMAGE if TEXT_TO_IMAGE in base.tasks else next(iter(base.tasks))
    samplers = admission.bundle.manifest.samplers or {}
    return task, reachable_strength(with_defaults(base.tasks[task], admission.request.defaults, samplers))


def _worsened(fidelities: Sequence[Fidelity]) -> str:
    return f"training took the graph's output from {_db(fidelities[0])} to {_db(fidelities[1])}: rescaled alone"


def _db(fidelity: Fidelity) -> str:
    return f"{fidelity.output_db:.2f} dB"


def _refuse_poor(name: str, fidelity: Fidelity) -> None:
    """Raise where the adapter's effect does not come through.

    Raises:
        CompatibilityError: says what does.
    """
    effect_db, gain = fidelity.effect_db, fidelity.effect_gain
    if effect_db is None or gain is None:
        raise CompatibilityError(mismatch(f"adapter {name!r}", "an effect on the float model", "none", "is it trained, and for this base?"))
    low, high = EFFECT_GAIN
    if effect_db < LEAST_EFFECT_DB or not low <= gain <= high:
        expected = f"its effect right to {LEAST_EFFECT_DB:g} dB, {low:g} to {high:g} of it"
        measured, hint = f"{effect_db:.1f} dB, {gain:.2f} of it", "build the bundle again with this adapter"
        raise CompatibilityError(mismatch(f"adapter {name!r} against the float model", expected, measured, hint))
