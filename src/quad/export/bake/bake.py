"""`quad bake`: adapters of a bundle become part of its weights. The new one has no slots, and any program that runs ONNX runs its graphs.

open -> sum of the products B A, slot by slot -> merged graphs -> both graphs on the stored calls -> manifest
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from quad import __version__
from quad.compile.artifact import graph_digest
from quad.core.component_call import Inputs
from quad.core.digests import canonical_json
from quad.core.errors import CompatibilityError, InputError, UnsupportedError, mismatch
from quad.core.manifest import BUNDLE_FILE, PROFILE_FILE, SLOTS_FILE, TOKENIZER_FILE, BundleManifest, Component, seal
from quad.core.precision import has_four_bits
from quad.core.profile import Profile
from quad.core.progress import Progress, silent
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.core.storage.directories import new_directory
from quad.core.storage.files import write_bytes
from quad.export.bake.compare import MergedLikeness, compare
from quad.export.bake.files import copy_rest, entries, write_graphs
from quad.export.bake.graph import MergedWeight, merge_graph
from quad.export.bake.manifest import MergedTasks, merged_adapters, merged_profile, merged_tasks
from quad.export.bake.merge import Real
from quad.export.bake.request import BakeRequest, BakeResult, is_pack_path
from quad.export.bake.updates import slot_updates
from quad.export.bundle_graph import require_onnx, require_slots
from quad.runtime.adapters.slot_sum import Part
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import Engine, default_threads, open_engine
from quad.runtime.golden_outputs import read_probes

WEAK_DB = 20.0  # an effect that comes through worse is told
ALL_IN_FLOATS = "w8a16"  # the quantized precision at which no layer has an integer kernel
PROMPTS = ("", "a picture")  # that text encoders are compared on
_NO_SLOTS = SlotTable(())


@dataclass(frozen=True, kw_only=True)
class _Merge:
    """Adapters on their way into a bundle's weights.

    Args:
        updates: component -> slot path -> update.
        group: of adapters, whose graph of the U-Net it is merged into, counted from 0.
    """

    bundle: Bundle
    store: AdapterStore
    weights: Mapping[str, float]
    updates: Mapping[str, Mapping[str, Real]]
    tasks: MergedTasks
    group: int

    def group_in(self, component: str) -> int:
        """The group whose graph of a component it is."""
        return self.group if component == UNET else 0


def bake(request: BakeRequest, progress: Progress = silent) -> BakeResult:
    """Merge adapters into a bundle's weights.

    Raises:
        UsageError: nothing to merge, or no such adapter. CompatibilityError: the bundle has no slots, or a pack is another bundle's.
        UnsupportedError: its graphs are a chip's binaries. InputError: the adapters change nothing.
        BackendError: the merged graph runs otherwise, or the disk is full.
    """
    start = time.perf_counter()
    request.check()
    progress("open", 0.0)
    bundle = open_bundle(request.bundle)
    require_onnx(bundle)
    require_slots(bundle)
    if has_four_bits(bundle.manifest.precision):
        hint = "merge the LoRA into the model's own weights and build that without it"
        raise UnsupportedError(mismatch(f"bundle {bundle.name!r}", "weights of 8 bits", bundle.manifest.precision, hint))
    engine = open_engine(request.engine, bundle.manifest.engines, bundle.manifest.precision)
    progress("sum", 0.1)
    merge = _merge(request, bundle)
    components: dict[str, Component] = {}
    changed: dict[str, dict[str, MergedWeight]] = {}
    with new_directory(request.output, BUNDLE_FILE) as stage:
        for component in bundle.slots.components:
            progress(f"merge {component}", 0.2)
            slots, updates = bundle.slots.of(component), merge.updates[component]
            into = partial(merge_graph, slots=slots, updates=updates, bits=request.weight_bits)
            components[component], changed[component] = write_graphs(bundle, component, merge.group_in(component), into, stage)
        progress("compare", 0.5)
        likeness, notes = _compare(merge, engine, {name: stage / part.file for name, part in components.items()})
        notes = (*notes, *_weak_notes(request, bundle.manifest.precision, likeness))
        progress("write", 0.9)
        manifest = _write(merge, copy_rest(bundle, components, stage), changed, stage)
    progress("done", 1.0)
    layers = [layer for component in changed.values() for layer in component.values()]
    return BakeResult(
        bundle=request.output,
        manifest=manifest,
        weights=merge.weights,
        layers=len(layers),
        widened=sum(layer.widened for layer in layers),
        worst=max(layer.error / layer.bound for layer in layers),
        seconds=time.perf_counter() - start,
        likeness=likeness,
        left_out=merge.tasks.left_out,
        notes=(*merge.tasks.notes, *notes),
    )


def _merge(request: BakeRequest, bundle: Bundle) -> _Merge:
    """Raises:
    UsageError: no such adapter. InputError: they change nothing. CompatibilityError: no task is left, or a pack is another bundle's.
    """
    store = AdapterStore(bundle)
    weights = {store.register(name) if is_pack_path(name) else name: weight for name, weight in request.used.items()}
    for name in weights:
        store.manifest(name)
    parts = {name: store.buffers(name) for name in weights}
    components = set(bundle.slots.components)
    updates = {part: slot_updates(parts, weights, bundle.slots.of(part), bundle.profile) for part in components}
    if not any(updates.values()):
        raise InputError(mismatch("--adapter", "weights other than zero", f"none in {', '.join(weights)}", "name another adapter"))
    tasks = merged_tasks(store.tasks(), weights, store.defaults(), bundle.manifest.samplers or {})
    if not tasks.tasks:
        others = ", ".join(tasks.left_out)
        raise CompatibilityError(
            mismatch("--adapter", "an adapter with a task, or a task of the base", f"tasks {others} alone", "name theirs")
        )
    return _Merge(bundle=bundle, store=store, weights=weights, updates=updates, tasks=tasks, group=store.group_of(weights))


def _compare(merge: _Merge, engine: Engine, graphs: Mapping[str, Path]) -> tuple[dict[str, MergedLikeness], tuple[str, ...]]:
    """Component -> how near its merged graph comes to the one with slots, and notes."""
    if not _slots_hold(merge):
        return {}, ("not compared: the adapters' ranks together exceed a slot's, which would hold the nearest sum alone",)
    mix, notes = merge.store.mix(list(merge.weights), list(merge.weights.values()))
    likeness: dict[str, MergedLikeness] = {}
    for component, graph in graphs.items():
        try:
            calls = _calls(merge.bundle, component)
        except CompatibilityError as error:
            notes = (*notes, f"{component} not compared: {error}")
            continue
        if not merge.updates[component]:
            continue
        names = merge.bundle.slots.of(component).input_shapes()
        zeros, bound = ({name: buffers[name] for name in names} for buffers in (merge.store.zeros, mix))
        likeness[component] = compare(
            engine, default_threads(), (merge.bundle.graph(component, None, merge.group_in(component)), graph), (zeros, bound), calls
        )
    return likeness, notes


def _slots_hold(merge: _Merge) -> bool:
    """Whether the graph with slots can be bound to the sum itself."""
    parts = {name: merge.store.buffers(name) for name in merge.weights}
    return all(
        sum(len(Part.of(name, merge.weights[name], buffers, slot).rows) for name, buffers in parts.items()) <= slot.rank
        for slot in merge.bundle.slots.slots
    )


def _weak_notes(request: BakeRequest, precision: str, likeness: Mapping[str, MergedLikeness]) -> list[str]:
    """A line for each component where 16-bit weights would bring the adapters through better, at no cost in time."""
    if precision != ALL_IN_FLOATS or request.weight_bits is not None:
        return []
    return [
        f"{component}: the adapters' effect is {like.effect_db:.1f} dB from that of the slots, gain {like.effect_gain:.3f}: 8-bit weights "
        "are coarse beside it; --weight-bits 16 is nearly exact"
        for component, like in likeness.items()
        if like.effect_db < WEAK_DB
    ]


def _calls(bundle: Bundle, component: str) -> list[Inputs]:
    """Calls to compare on.

    Raises:
        CompatibilityError: an older bundle stores none of the U-Net.
    """
    if component == UNET:
        return list(read_probes(bundle))
    text, tokenizer = bundle.manifest.text, Tokenizer(bundle.read(TOKENIZER_FILE), bundle.manifest.text)
    vectors = {} if text.first_vector_id is msgspec.UNSET else {"embeddings": np.zeros((1, text.length, text.hidden), np.float32)}
    return [{"input_ids": tokenizer(prompt).ids, **vectors} for prompt in PROMPTS] if component == TEXT_ENCODER else []


def _write(merge: _Merge, components: dict[str, Component], changed: Mapping[str, Mapping[str, MergedWeight]], stage: Path
           ) -> BundleManifest:  # fmt: skip
    """All but the graphs; the manifest last."""
    before = merge.bundle.manifest
    profile: Profile = merged_profile(merge.bundle.profile.of_group(merge.group), merge.bundle.slots, changed)
    write_bytes(stage / SLOTS_FILE, canonical_json(_NO_SLOTS))
    write_bytes(stage / PROFILE_FILE, canonical_json(profile))
    files = entries(stage)
    parents = {
        **before.parents,
        "bundle": before.sha256,
        "slots": _NO_SLOTS.digest,
        "profile": profile.digest,
        "graph": graph_digest(components[UNET], lambda name: files[name].sha256),
    }
    shown = "+".join(name if weight == 1 else f"{name}:{weight:g}" for name, weight in merge.weights.items())
    manifest = seal(
        msgspec.structs.replace(
            before,
            name=f"{before.name}+{shown}",
            components=components,
            files=files,
            adapters=(),
            tasks=merge.tasks.tasks,
            parents=parents,
            merged=merged_adapters([merge.store.manifest(name) for name in merge.weights], merge.weights),
            quad_version=__version__,
        )
    )
    write_bytes(stage / BUNDLE_FILE, canonical_json(manifest))
    return manifest
