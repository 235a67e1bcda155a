"""Admission: a new LoRA for a bundle that is frozen. The graph and the profile are read, never written.

open bundle -> read LoRA for its slots -> cut, rescale, measure slot by slot -> [the base at hand: align, measure against float] -> try on
the bundle's own graph -> pack, or refuse with the reasons

It needs what a device has: NumPy and the bundle's engine. The base comes from the rooms above (`quad.align`), which know torch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from quad.admit.aligned import Admission, AlignedAdapter, OpenBase, rescale
from quad.admit.repack import unpacked
from quad.admit.report import adapter_quality, checks, task_notes, word_notes
from quad.admit.request import AdaptRequest, AdaptResult
from quad.admit.slots import Fitted, fit, refuse_unfit
from quad.admit.trial import StoredCalls, Trial, refuse_unlike
from quad.admit.weights import TriedWeights, long_mids, shrunk, try_weights
from quad.core.errors import CompatibilityError, UsageError, mismatch
from quad.core.manifest import AdapterManifest, AdapterQuality, TaskSpec
from quad.core.padding import trim
from quad.core.progress import Progress, StageClock, silent
from quad.core.slots import TEXT_ENCODER, UNET
from quad.core.storage.pack import write_pack
from quad.core.tensor_names import Role, paths_with
from quad.lora.layout import bundle_layouts, with_skipped
from quad.lora.low_rank import CONVERTED_RANK
from quad.lora.read import FloatAdapter, RankLimits, read_lora
from quad.runtime.adapter_defaults import reachable_strength, with_defaults
from quad.runtime.adapters.packed import PackedAdapter, adapter_manifest
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.fixed_threads import fixed_threads
from quad.runtime.golden_outputs import read_probes

STAGES = ("open", "lora", "slots", "align", "try", "write")
_log = logging.getLogger(__name__)


@fixed_threads()
def admit(request: AdaptRequest, progress: Progress = silent, open_base: OpenBase | None = None) -> AdaptResult:
    """Admit one LoRA to a frozen bundle and write it as a pack.

    Args:
        progress: called with each stage as it begins, and the share of stages done.
        open_base: opens the model that the bundle was built from; None admits without it.

    Raises:
        CompatibilityError: the adapter does not fit the slots, is clipped, behaves unlike one of this bundle, or base and bundle do not
        belong together; or the bundle is of an older build. InputError, UnsupportedError: the LoRA file is wrong, or not one of those that
        are read. VerificationError: the bundle was changed. UsageError: an option. BackendError: no engine, or the disk is full.
    """
    start = time.perf_counter()
    request.check()
    clock = StageClock(STAGES, progress)
    with clock("open"):
        admission = _open(request, open_base)
    with clock("lora"):
        adapter = _read(admission)
    with clock("slots"):
        fitted = _fit(admission, adapter)
    tried = _in_best_group(admission, lambda own: _in_group(own, adapter, fitted, clock))
    aligned, trial, weights = tried.aligned, tried.trial, tried.weights
    with clock("write"):
        manifest = _write(tried, adapter, fitted)
    clock.done()
    checked, unchecked = checks(admission.bundle, fitted, trial, aligned, weights)
    return AdaptResult(
        pack=request.output,
        manifest=manifest,
        slots=fitted.slots,
        applied=fitted.applied,
        trial=trial.to_json() if weights is None else {**trial.to_json(), "weights": weights.to_json()},
        seconds=time.perf_counter() - start,
        checked=checked,
        unchecked=unchecked,
        notes=(*fitted.adapter.notes, *aligned.notes, *task_notes(admission.tasks), *word_notes(adapter)),
        alignment=aligned.alignment,
    )


@dataclass(frozen=True, kw_only=True)
class _TriedAdapter:
    """The adapter in the numbers of one group of adapters, and how it behaves in that group's graph.

    Args:
        weights: that were tried, at normalised slots.
    """

    admission: Admission
    aligned: AlignedAdapter
    trial: Trial
    weights: TriedWeights | None

    @property
    def takes_whole(self) -> bool:
        """With weight 1."""
        return self.weights is None or (self.weights.most or 0.0) >= 1.0

    @property
    def fidelity(self) -> tuple[float, float]:
        """By which groups are compared: how near to float it comes, where that was measured, then the largest weight."""
        return (self.aligned.measured or AdapterQuality()).output_db or 0.0, (self.weights and self.weights.most) or 0.0


def _in_best_group(admission: Admission, in_group: Callable[[Admission], _TriedAdapter]) -> _TriedAdapter:
    """The group whose graph holds the adapter best: the one that comes nearest to float, or without the base the first that takes it whole,
    for groups stand in the order of how wide their ranges are.

    Raises:
        CompatibilityError: none takes it; what the widest says.
    """
    tried: list[_TriedAdapter] = []
    refusal: CompatibilityError | None = None
    for group in range(admission.bundle.group_count):
        try:
            tried.append(in_group(replace(admission, bundle=admission.bundle.of_group(group))))
        except CompatibilityError as error:
            refusal = error
            continue
        if admission.base is None and tried[-1].takes_whole:
            break
    if not tried:
        assert refusal is not None
        raise refusal
    return max(tried, key=lambda each: each.fidelity)


def _in_group(admission: Admission, adapter: FloatAdapter, fitted: Fitted, clock: StageClock) -> _TriedAdapter:
    """Aligned to the ranges of the bundle's group, and tried in its graph.

    Raises:
        CompatibilityError: it does not get through there.
    """
    with clock("align"):
        base = admission.base
        aligned = rescale(admission.bundle, fitted) if base is None else base.align(admission, adapter, fitted)
    with clock("try"):
        return _try(admission, fitted, aligned)


def _open(request: AdaptRequest, open_base: OpenBase | None) -> Admission:
    """The bundle, the adapter's task in it, the base where one is given, and the engine that will run the bundle's U-Net.

    Raises:
        CompatibilityError: the bundle has no slots or no stored calls, or the base is another model.
    """
    bundle = open_bundle(request.bundle)
    if not bundle.slots.slots:
        hint = "build it with one adapter at least"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", "slots for adapters", "none", hint))
    request = request.with_files_defaults()
    tasks = _tasks(request, bundle)
    read_probes(bundle)  # there is nothing to try an adapter on without them
    base = None if open_base is None else open_base(bundle)
    engine = open_engine(request.engine, bundle.manifest.engines, bundle.manifest.precision)
    return Admission(request=request, bundle=bundle, tasks=tasks, base=base, engine=engine)


def _tasks(request: AdaptRequest, bundle: Bundle) -> dict[str, TaskSpec]:
    """The adapter's task and how it runs; empty for an adapter that has none.

    Raises:
        UsageError: the task is new and the caller does not say what it is like, or that is no task of the bundle.
    """
    specs = AdapterStore(bundle).tasks()
    task = request.task or (request.name if request.name in specs or request.like is not None else None)
    like = request.like or task
    if like is not None and like not in specs:
        option, listed = "--task" if request.like is None else "--like", ", ".join(sorted(specs))
        hint = "choose one of these" if request.like is not None else "say which of these a new task is like: --like TASK"
        raise UsageError(mismatch(option, f"a task of the bundle ({listed})", repr(like), hint))
    if task is None or like is None:
        return {}
    spec = with_defaults(specs[like], request.defaults, bundle.manifest.samplers or {})
    return {task: msgspec.structs.replace(reachable_strength(spec), adapter=request.name)}


def _read(admission: Admission) -> FloatAdapter:
    """The LoRA by the base's layers, or by what the bundle knows of them; nothing is cut yet."""
    return _read_as_it_is(admission).for_base(admission.bundle.manifest.schedule.prediction)


def _read_as_it_is(admission: Admission) -> FloatAdapter:
    request, bundle = admission.request, admission.bundle
    if request.packed_for is not None:
        return unpacked(request.name, request.adapter, request.packed_for, bundle)
    largest = max(slot.adapter_rank for slot in bundle.slots.slots)
    # What is lost is judged with what the slots' ranks lose.
    limits = RankLimits(None, 0.0, max(CONVERTED_RANK, largest))
    if admission.base is not None:
        return admission.base.read(request, limits)
    layers = {component: paths_with(Role.WEIGHT, bundle.profile.component(component)) for component in (UNET, TEXT_ENCODER)}
    unet, text = bundle_layouts(bundle.slots.of_adapters, layers)
    text = None if text is None else with_skipped(text, bundle.manifest.text.skipped_layers)
    return read_lora(request.name, request.adapter, unet, request.allow_unused_keys, text_encoder=text, limits=limits)


def _fit(admission: Admission, adapter: FloatAdapter) -> Fitted:
    """The adapter brought to the slots.

    Raises:
        CompatibilityError: slots that do not take it, by name.
    """
    fitted = fit(adapter, admission.bundle.slots, admission.bundle.profile)
    try:
        refuse_unfit(fitted, admission.bundle.name, admission.request.min_energy)
    except CompatibilityError as error:
        _log.info("refused at its slots: %s", error)
        raise
    return fitted


def _try(admission: Admission, fitted: Fitted, aligned: AlignedAdapter) -> _TriedAdapter:
    """The adapter on the stored calls, and on a few of its own where the base gave some; at normalised slots with other weights too.

    There its rows of A are shorter where `A x` left its range.

    Raises:
        CompatibilityError: it behaves unlike an adapter of this bundle.
    """
    name, bundle = admission.request.name, admission.bundle
    calls, weights = StoredCalls(bundle, admission.load_unet, more=aligned.own_calls, at_once=admission.request.at_once), None
    if bundle.slots.normalised and (reaches := long_mids(calls.all_uses(aligned.buffers), bundle.slots)):
        note = f"A x left its range in {len(reaches)} slots, up to {max(reaches.values()):.2f} of it: rows of A are shorter, scales larger"
        aligned = replace(aligned, buffers=shrunk(aligned.buffers, reaches, calls.zeros), notes=(*aligned.notes, note))
    trial = calls.run(aligned.buffers)
    if bundle.slots.normalised and trial.sites and UNET in fitted.components:
        weights = try_weights(name, calls, trial, aligned.buffers)
    if UNET in fitted.components and (weights is None or weights.most is None or trial.effect == 0.0):
        try:
            tried = "" if weights is None else weights.at_the_least
            refuse_unlike(name, trial, bundle.name, tried)
        except CompatibilityError as error:
            _log.info("refused on stored calls: %s", error)
            raise
    return _TriedAdapter(admission=admission, aligned=aligned, trial=trial, weights=weights)


def _write(tried: _TriedAdapter, adapter: FloatAdapter, fitted: Fitted) -> AdapterManifest:
    """The pack on disk.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    admission, aligned, trial, weights = tried.admission, tried.aligned, tried.trial, tried.weights
    request, bundle = admission.request, admission.bundle
    tensors = trim({**aligned.buffers, **aligned.buffers.scales}, bundle.slots)
    packed = PackedAdapter(
        name=request.name,
        tensors=tensors,
        rank=fitted.adapter.rank,
        source=adapter.digest,
        defaults=adapter.defaults(request.defaults),
        group=bundle.group,
    )
    draft = adapter_manifest(packed, bundle.slots, bundle.profile, bundle.manifest.parents, admission.tasks)
    manifest = msgspec.structs.replace(draft, golden=trial.golden, quality=adapter_quality(fitted, trial, aligned))
    if weights is not None and weights.most is not None:
        room = math.inf if draft.headroom is msgspec.UNSET else draft.headroom
        manifest = msgspec.structs.replace(manifest, headroom=min(weights.most, room))
    written = write_pack(request.output, manifest, packed.tensors)
    _log.info("adapter %s admitted to bundle %s: rank %d, %d bytes", request.name, bundle.name, written.rank, written.size_bytes)
    return written
