"""Admission: a new LoRA for a bundle that is frozen. The graph and the profile are read, never written.

open bundle -> read LoRA for its slots -> cut, rescale, measure slot by slot -> [--base: align, measure against float] -> try on the
bundle's own graph -> pack, or refuse with the reasons
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from quad.admit.request import AdaptRequest, AdaptResult
from quad.admit.slots import Fitted, fit, refuse_unfit, with_gains
from quad.admit.trial import Trial, refuse_unlike, try_adapter
from quad.admit.with_base import Study, calls_in, open_base, quality, samples_for
from quad.build.align_adapters import quality_of
from quad.build.call_recorder import spread
from quad.build.write_bundle import PackedAdapter, adapter_manifest
from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.manifest import AdapterManifest, AdapterQuality, TaskSpec
from quad.core.padding import trim
from quad.core.progress import Progress, StageClock, silent
from quad.core.slots import TEXT_ENCODER, UNET
from quad.core.storage.pack import write_pack
from quad.core.tensor_names import Role, paths_with
from quad.lora.layout import bundle_layouts
from quad.lora.read import FloatAdapter, RankLimits, read_lora
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from quad.model.slots.network import slot_inputs
from quad.quantize.distill.distill import Alignment
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall
from quad.quantize.distill.training import DistillOptions
from quad.quantize.encodings.integers import quantize_adapter
from quad.runtime.adapters.buffers import Buffers, pad, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import Session, default_threads, open_engine
from quad.runtime.golden_outputs import read_probes
from quad.runtime.request import TEXT_TO_IMAGE

__all__ = ["STAGES", "AdaptRequest", "AdaptResult", "adapt"]

STAGES = ("open", "lora", "slots", "align", "try", "write")
LOOKED_AT = 4  # of the adapter's own calls, whose activations are looked at with the base at hand
# Beyond these the adapter's effect comes through as something else: its noise is half as large as itself, or its size is off by half.
# Toyland's six have 25 dB and more, and 0.998 to 1.006 of it.
LEAST_EFFECT_DB, EFFECT_GAIN = 6.0, (0.5, 1.5)


@dataclass(frozen=True)
class _Aligned:
    """The adapter in the bundle's numbers, and how it got there; with the base, how near its own graph comes to float.

    Args:
        trained: it is no longer the product that was fitted to the slots.
    """

    buffers: Buffers
    alignment: Alignment | None = None
    fidelity: Fidelity | None = None
    lessons: Sequence[TeacherCall] = ()
    trained: bool = False
    notes: tuple[str, ...] = ()


def adapt(request: AdaptRequest, progress: Progress = silent) -> AdaptResult:
    """Admit one LoRA to a frozen bundle and write it as a pack.

    Args:
        progress: called with each stage as it begins, and the share of stages done.

    Raises:
        CompatibilityError: the adapter does not fit the slots, is clipped, behaves unlike one of this bundle, or base and bundle do not
        belong together; or the bundle is of an older build. InputError, UnsupportedError: the LoRA file is wrong, or not one of those that
        are read. VerificationError: the bundle was changed. UsageError: an option. BackendError: no engine, or the disk is full.
    """
    start = time.perf_counter()
    request.check()
    clock = StageClock(STAGES, progress)
    with clock("open"):
        bundle = open_bundle(request.bundle)
        if not bundle.slots.slots:
            then = "build it with one adapter at least"
            raise CompatibilityError(mismatch(f"bundle {bundle.manifest.name!r}", "slots for adapters", "none", then))
        tasks = _tasks(request, bundle)
        read_probes(bundle)
        base = None if request.base is None else open_base(bundle, request.base)
        opened = open_engine(request.engine, bundle.manifest.engines, bundle.manifest.precision)
    with clock("lora"):
        adapter = _read(request, bundle, base)
    with clock("slots"):
        fitted = fit(adapter, bundle.slots, bundle.profile)
        refuse_unfit(fitted, bundle.manifest.name, request.min_energy)
    with clock("align"):
        session = opened.load(bundle.graph(UNET), default_threads())
        aligned = _alone(bundle, fitted) if base is None else _with_base(request, bundle, session, (base, tasks), (adapter, fitted))
    with clock("try"):
        own = [call for lesson in aligned.lessons for call in calls_in(lesson)]
        trial = try_adapter(bundle, session, aligned.buffers, spread(own, LOOKED_AT))
        if UNET in fitted.components:
            refuse_unlike(request.name, trial, bundle.manifest.name)
    with clock("write"):
        packed = PackedAdapter(request.name, trim(aligned.buffers, bundle.slots), fitted.adapter.rank, adapter.digest)
        manifest = _manifest(packed, bundle, tasks, (fitted, trial, aligned))
        manifest = write_pack(request.output, manifest, packed.tensors)
    clock.done()
    checked, unchecked = _said(bundle, fitted, trial, aligned)
    return AdaptResult(
        request.output, manifest, fitted.slots, trial.to_json(), time.perf_counter() - start, checked, unchecked,
        (*fitted.adapter.notes, *aligned.notes, *_task_notes(tasks)), {} if aligned.alignment is None else aligned.alignment.to_json(),
    )  # fmt: skip


def _tasks(request: AdaptRequest, bundle: Bundle) -> dict[str, TaskSpec]:
    """The adapter's task and how it runs; empty for an adapter that has none.

    Raises:
        UsageError: the task is new and the caller does not say what it is like, or that is no task of the bundle.
    """
    known = AdapterStore(bundle).tasks()
    task = request.task or (request.name if request.name in known or request.like is not None else None)
    like = request.like or task
    if like is not None and like not in known:
        option, listed = "--task" if request.like is None else "--like", ", ".join(sorted(known))
        then = "choose one of these" if request.like is not None else "say which of these a new task is like: --like TASK"
        raise UsageError(mismatch(option, f"a task of the bundle ({listed})", repr(like), then))
    return {} if task is None or like is None else {task: msgspec.structs.replace(known[like], adapter=request.name)}


def _read(request: AdaptRequest, bundle: Bundle, base: Base | None) -> FloatAdapter:
    """The LoRA by the base's layers, or by what the bundle knows of them; nothing is cut yet."""
    limits = RankLimits(None, 0.0)  # what is lost is judged with what the slots' ranks lose
    if base is not None:
        return read_adapter(
            request.name, request.adapter, base.unet, request.allow_unused_keys, text_encoder=base.text_encoder, limits=limits
        )
    layers = {component: paths_with(Role.WEIGHT, bundle.profile.component(component)) for component in (UNET, TEXT_ENCODER)}
    unet, text = bundle_layouts(bundle.slots, layers)
    return read_lora(request.name, request.adapter, unet, request.allow_unused_keys, text_encoder=text, limits=limits)


def _alone(bundle: Bundle, fitted: Fitted) -> _Aligned:
    """Rescaled to the frozen encodings; in a float bundle as it is."""
    if not bundle.profile.encodings:
        return _Aligned(Buffers(slot_inputs(fitted.adapter, bundle.slots)))
    return _Aligned(Buffers(quantize_adapter(fitted.adapter, bundle.slots, bundle.profile)))


def _with_base(
    request: AdaptRequest, bundle: Bundle, session: Session, model: tuple[Base, dict[str, TaskSpec]], read: tuple[FloatAdapter, Fitted]
) -> _Aligned:
    """Aligned by rescaling and training, and measured on the bundle's own graph; what was trained is kept where it is nearer there.

    Args:
        model: the base, and the task that the adapter is for, if any.
        read: the adapter as it was trained, and as it was brought to the slots.
    """
    (base, tasks), (adapter, fitted) = model, read
    task, spec = next(iter(tasks.items()), (TEXT_TO_IMAGE, None))
    if spec is None:
        task = task if task in base.tasks else next(iter(base.tasks))
        spec = base.tasks[task]
    own = Study.of(bundle, base, {task: spec}, with_gains(adapter, bundle.profile))
    probes = own.probes(samples_for(request, task, spec))
    options, forms = DistillOptions(steps=request.steps(bundle.manifest.precision)), [_alone(bundle, fitted).buffers]
    done = own.align(fitted.adapter, probes, options) if bundle.profile.encodings else None
    if done is not None and done.alignment.steps:
        forms.append(Buffers(pad(done.integers, zero_buffers(bundle.slots))))
    lessons = own.held_out(probes)
    found = quality(bundle, session, lessons, forms)
    best = max(range(len(forms)), key=lambda index: found[index].output_db)
    if UNET in fitted.components:
        _refuse_poor(request.name, found[best])
    notes = () if best == len(forms) - 1 else (f"training took the graph's output from {_db(found[0])} to {_db(found[1])}: rescaled alone",)
    return _Aligned(forms[best], None if done is None else done.alignment, found[best], lessons, best > 0, notes)


def _db(found: Fidelity) -> str:
    return f"{found.output_db:.2f} dB"


def _refuse_poor(name: str, found: Fidelity) -> None:
    """Raise where the adapter's effect does not come through.

    Raises:
        CompatibilityError: says what does.
    """
    if found.effect_db is None or found.effect_gain is None:
        raise CompatibilityError(mismatch(f"adapter {name!r}", "an effect on the float model", "none", "is it trained, and for this base?"))
    low, high = EFFECT_GAIN
    if found.effect_db < LEAST_EFFECT_DB or not low <= found.effect_gain <= high:
        where, expected = (
            f"adapter {name!r} against the float model",
            f"its effect right to {LEAST_EFFECT_DB:g} dB, {low:g} to {high:g} of it",
        )
        shown = f"{found.effect_db:.1f} dB, {found.effect_gain:.2f} of it"
        raise CompatibilityError(mismatch(where, expected, shown, "build the bundle again with this adapter"))


def _manifest(packed: PackedAdapter, bundle: Bundle, tasks: dict[str, TaskSpec], found: tuple[Fitted, Trial, _Aligned]) -> AdapterManifest:
    fitted, trial, aligned = found
    measured = AdapterQuality() if aligned.fidelity is None else quality_of(aligned.fidelity)
    quality = msgspec.structs.replace(
        measured,
        product_db=msgspec.UNSET if fitted.product_db is None or aligned.trained else fitted.product_db,
        energy=fitted.energy,
        effect=trial.effect,
        lost=max(use.lost for use in trial.sites.values()) if trial.sites else msgspec.UNSET,
        calls=len(aligned.lessons) or msgspec.UNSET,
    )
    said = adapter_manifest(packed, bundle.slots, bundle.manifest.parents, tasks)
    return msgspec.structs.replace(said, golden=trial.golden, quality=quality)


def _task_notes(tasks: dict[str, TaskSpec]) -> list[str]:
    return [
        f"task {task}: its sampler's table was solved for another adapter" for task, spec in tasks.items() if spec.sampler.kind == "olss"
    ]


def _said(bundle: Bundle, fitted: Fitted, trial: Trial, aligned: _Aligned) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was checked and what was not, a line each."""
    calls = len(read_probes(bundle))
    checked, unchecked = [f"effect on {calls} stored calls, by the bundle's own graph"], []
    if fitted.slots:
        checked.insert(0, f"rank, clipping and steps of {len(fitted.slots)} slots")
    else:
        unchecked.append("slots: this bundle quantizes nothing")
    if trial.sites:
        more = f" and {min(LOOKED_AT, len(aligned.lessons))} of its own" if aligned.lessons else ""
        checked.append(f"ranges of {len(trial.sites)} activations of the U-Net on {calls} stored calls{more}")
    else:
        unchecked.append("ranges of activations: the U-Net's graph has none to read")
    if aligned.fidelity is None:
        unchecked.append("quality against the full-precision model, and on pictures of its own task: give --base MODEL")
    else:
        what = "output" if aligned.fidelity.effect_db is None else "output and effect"
        checked.append(f"{what} against the full-precision model on {len(aligned.lessons)} calls")
    if TEXT_ENCODER in fitted.components:
        unchecked.append("activations of the text encoder, and their effect on the stored calls, whose words are fixed")
    unchecked.append("whole pictures: quad run, or quad eval on held-out samples")
    return tuple(checked), tuple(unchecked)
