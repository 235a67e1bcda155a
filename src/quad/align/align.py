"""The base model in an admission: the adapter trained and measured with it, and what comes nearest to float kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from quad.admit.aligned import Admission, AlignedAdapter, rescale
from quad.admit.request import AdaptRequest
from quad.admit.slots import Fitted, with_gains
from quad.align.with_base import BaseNetworks, calls_in, measure_fidelity, measured_probes, samples_for
from quad.build.align_adapters import quality_of
from quad.build.calls.call_recorder import spread
from quad.core.device import CPU
from quad.core.errors import CompatibilityError, mismatch
from quad.core.manifest import TaskSpec
from quad.core.slots import UNET
from quad.lora.read import FloatAdapter, RankLimits
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from quad.model.device import open_device
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import Fidelity
from quad.runtime.adapter_defaults import reachable_strength, with_defaults
from quad.runtime.adapters.buffers import whole_buffers
from quad.runtime.adapters.file import bundle_zeros
from quad.runtime.request import TEXT_TO_IMAGE

OBSERVED_CALLS = 4  # of the adapter's own calls, whose activations are observed
# Beyond these the adapter's effect comes through as something else: its noise is half as large as itself, or its size is off by half.
# Toyland's six have 25 dB and more, and 0.998 to 1.006 of it.
LEAST_EFFECT_DB, EFFECT_GAIN = 6.0, (0.5, 1.5)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedBase:
    """The base model, opened for one bundle; a `quad.admit.aligned.BaseModel`.

    Args:
        device: that its networks compute on, once the adapter was read for them.
    """

    model: Base
    device: str = CPU

    def read(self, request: AdaptRequest, limits: RankLimits) -> FloatAdapter:
        """See `BaseModel.read`."""
        unet, text_encoder = self.model.unet, self.model.text_encoder
        return read_adapter(request.name, request.adapter, unet, request.allow_unused_keys, text_encoder=text_encoder, limits=limits)

    def align(self, admission: Admission, adapter: FloatAdapter, fitted: Fitted) -> AlignedAdapter:
        """See `BaseModel.align`: what was trained is kept where it is nearer on the bundle's own graph."""
        request, bundle = admission.request, admission.bundle
        for module in (self.model.unet, self.model.text_encoder, self.model.vae):
            module.to(open_device(self.device))
        task, spec = _measured_task(admission, self.model)
        networks = BaseNetworks.of(bundle, self.model, {task: spec}, with_gains(adapter, bundle.profile))
        probes, steps = networks.probes(samples_for(request, task, spec)), request.distill_steps or 0
        measured = measured_probes(probes, is_trained=steps > 0)

        # The forms to choose from: rescaled, and trained where training was asked for and took place.
        forms, alignment = [rescale(bundle, fitted).buffers], None
        notes: list[str] = []
        if not bundle.profile.has_float_slots and not networks.is_exact:
            notes.append("not trained: the rounded weights of this bundle cannot be read out of its graph")
        elif not bundle.profile.has_float_slots:
            distilled = networks.align(fitted.adapter, probes if steps else measured, DistillOptions(steps=steps))
            alignment = distilled.alignment
            if alignment.steps:
                forms.append(whole_buffers(distilled.integers, bundle_zeros(bundle)))

        # The nearest to float on calls that nothing was trained on.
        teacher_calls = networks.teacher_calls(measured)
        fidelities = measure_fidelity(bundle, admission.load_unet(), teacher_calls, forms)
        best = max(range(len(forms)), key=lambda index: fidelities[index].output_db)
        if UNET in fitted.components:
            _refuse_poor(request.name, fidelities[best])
        notes += [] if best == len(forms) - 1 else [_worsened(fidelities)]
        _log.info("adapter %s: %s, output right to %s", request.name, ("rescaled", "trained")[best], _db(fidelities[best]))
        return AlignedAdapter(
            buffers=forms[best],
            alignment={} if alignment is None else alignment.to_json(),
            measured=quality_of(fidelities[best]),
            measured_calls=len(teacher_calls),
            own_calls=spread([call for teacher_call in teacher_calls for call in calls_in(teacher_call)], OBSERVED_CALLS),
            trained=best > 0,
            notes=tuple(notes),
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
