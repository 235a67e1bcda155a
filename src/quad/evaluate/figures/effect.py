"""Adapter effect: the change that an adapter makes, and how much of it a quantized graph carries. Source: docs/method.md section 7.

    e_fp, e_q    output(adapter) - output(zero adapter) on the same inputs, in float and as the bundle's engine runs it
    gain         <e_q, e_fp> / <e_fp, e_fp>            1 is right, below 1 the adapter is weak
    SQNR         10 log10( |e_fp|^2 / |e_q - e_fp|^2 )

A whole-output figure hides a weak adapter, because most of the output is the base's. Gains of single runs differ far more than those of
calls along one run, so many runs are asked, and few calls of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.component_call import split_batch
from quad.core.decibels import EffectEnergy, gain_error
from quad.core.device import CPU
from quad.core.float_type import F32
from quad.core.manifest import TaskSpec
from quad.core.slots import UNET
from quad.evaluate.figures.metrics import PSNR_CAP_DB, unit
from quad.evaluate.figures.quality import held_out
from quad.evaluate.figures.reference import Reference
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.device import open_device
from quad.model.slots.network import slot_networks
from quad.quantize.observe.batched_calls import concatenate
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.quantize.observe.side_by_side import side_by_side
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.conditioning.text_features import filled_up
from quad.runtime.engines.engine import Session, default_threads, open_engine
from quad.runtime.engines.float_types import denoiser_engine
from quad.runtime.fixed_threads import ENGINE_THREADS
from quad.runtime.pipeline import QuadPipeline

CALLS_OF_RUN = 2  # of each held-out run, other timesteps in turns
TOGETHER = 16  # of these calls in one batch of full precision
Array = NDArray[Any]


@dataclass(frozen=True)
class Effect:
    """How an adapter's effect came through.

    Args:
        gain: 1 is right.
        sqnr_db: infinite where nothing was lost.
        gain_error: standard error of the gain over the runs that it was measured on; None of fewer than two.
    """

    gain: float
    sqnr_db: float
    gain_error: float | None = None

    @property
    def capped_db(self) -> float:
        """SQNR in dB, capped as PSNR is: JSON knows no infinity."""
        return min(self.sqnr_db, PSNR_CAP_DB)


def effect_of(true: Sequence[Array], quantized: Sequence[Array], runs: Sequence[int] = ()) -> Effect | None:
    """Gain and SQNR of some effects, pooled over all of them.

    Args:
        true, quantized: pairs of one shape each: `e_fp` and `e_q`.
        runs: the run that each pair is of; none where the pairs are independent of each other.

    Returns:
        None where the true effect is zero: of nothing there is no share.
    """
    of_run: dict[int, EffectEnergy] = {}
    for run, e, e_hat in zip(runs or range(len(true)), true, quantized, strict=True):
        of_run[run] = of_run.get(run, EffectEnergy()) + EffectEnergy.of(e, e_hat)
    pooled = sum(of_run.values(), EffectEnergy())
    return None if pooled.true == 0.0 else Effect(pooled.gain, pooled.sqnr_db(math.inf), gain_error(list(of_run.values())))


@dataclass(frozen=True)
class TrueEffect:
    """One U-Net call and what the adapter changes in its output in float, `(B, 4, h, w)`."""

    probe: Probe
    effect: Array


def held_out_probes(model: Path, adapters: Mapping[str, Path], tasks: Mapping[str, TaskSpec], runs: int, device: str = CPU) -> list[Probe]:
    """The U-Net's inputs along float runs of `runs` held-out samples of every task that has an adapter.

    Args:
        tasks: as they will be run, with their samplers.
        device: that torch computes on.
    """
    with_adapter = {task: spec for task, spec in tasks.items() if spec.adapter is not None}
    if not with_adapter:
        return []
    base = replace(open_model(model), tasks=with_adapter)
    names = {spec.adapter for spec in with_adapter.values()}
    loaded = [read_adapter(name, file, base.unet, text_encoder=base.text_encoder) for name, file in adapters.items() if name in names]
    for module in (base.unet, base.text_encoder, base.vae):
        module.to(open_device(device))
    slotted = slot_networks(base.unet, base.text_encoder, loaded)
    drawn = [(task, sample) for task in with_adapter for sample in held_out(task, runs, base.picture_size.width)]
    samples = [CalibrationSample(task=task, prompt=sample.prompt, image=sample.image, mask=sample.mask) for task, sample in drawn]
    networks = component_networks(base, slotted.unet, slotted.text_encoder)
    probes = record_probes(base, networks, slotted.table, loaded, samples, ProbeOptions(per_adapter=None))
    return [probe for group in probes.values() for probe in group]


def calls_in_turns(probes: Sequence[Probe], most: int = CALLS_OF_RUN) -> list[Probe]:
    """Of each run so many calls at most, evenly spread, of the next run those that come after them: all runs show all timesteps alike.

    Args:
        probes: whole runs, each in order.
    """
    runs: dict[tuple[str, str, int], list[Probe]] = {}
    for probe in probes:
        runs.setdefault((probe.source, probe.task, probe.run), []).append(probe)
    strides = (-(-len(calls) // most) for calls in runs.values())
    return [probe for (key, calls), stride in zip(runs.items(), strides, strict=True) for probe in calls[key[2] % stride :: stride]]


def true_effects(reference: Reference, probes: Sequence[Probe]) -> list[TrueEffect]:
    """The change that every probe's adapter makes, by diffusers and PEFT."""
    sources = {probe.source for probe in probes}
    of_source = {source: [index for index, probe in enumerate(probes) if probe.source == source] for source in sorted(sources)}
    effects: dict[int, TrueEffect] = {}
    for source, indices in of_source.items():
        own = [probes[index] for index in indices]
        full, zero = (_outputs(reference, name, own) for name in (source, None))
        effects |= {index: TrueEffect(probes[index], y - y0) for index, y, y0 in zip(indices, full, zero, strict=True)}
    return [effects[index] for index in range(len(probes))]


def _outputs(reference: Reference, adapter: str | None, probes: Sequence[Probe]) -> list[Array]:
    """Full precision's output `(B, c, h, w)` for every probe, with one adapter or none; calls of one shape share a batch."""
    outputs: dict[int, Array] = {}
    shapes = {tuple(probe.inputs["sample"].shape[1:]) for probe in probes}
    for shape in sorted(shapes):
        alike = [index for index, probe in enumerate(probes) if probe.inputs["sample"].shape[1:] == shape]
        for first in range(0, len(alike), TOGETHER):
            batch = alike[first : first + TOGETHER]
            answer = reference.network_output(adapter, *concatenate([probes[index].tensors() for index in batch]))
            rows = answer.split([len(probes[index].inputs["sample"]) for index in batch])
            outputs |= {index: row.numpy() for index, row in zip(batch, rows, strict=True)}
    return [outputs[index] for index in range(len(probes))]


def network_effects(session: Session, store: AdapterStore, true: Sequence[TrueEffect]) -> dict[str, Effect | None]:
    """Task -> how its adapter's effect comes through one loaded U-Net, on the probes of that task.

    Args:
        session: the bundle's U-Net; its slot inputs are bound anew.
        store: the bundle's adapters; probes of others are left out.
    """
    pairs: dict[str, tuple[list[Array], list[Array], list[int]]] = {}
    for true_effect in true:
        if true_effect.probe.source not in store.names:
            continue
        full, zero = (
            unet_output(session, store.mix(names, [1.0] * len(names))[0], true_effect.probe) for names in ([true_effect.probe.source], [])
        )
        fp, q, runs = pairs.setdefault(true_effect.probe.task, ([], [], []))
        fp.append(true_effect.effect)
        q.append(full - zero)
        runs.append(true_effect.probe.run)
    return {task: effect_of(fp, q, runs) for task, (fp, q, runs) in pairs.items()}


def unet_output(session: Session, buffers: Mapping[str, Array], probe: Probe) -> Array:
    """The loaded U-Net's output `(B, 4, h, w)` for a probe's inputs, with these adapter buffers."""
    session.bind({name: buffer for name, buffer in buffers.items() if name in session.inputs})
    words, context = probe.inputs["encoder_hidden_states"], session.inputs["encoder_hidden_states"][1]
    inputs = {**probe.inputs, "encoder_hidden_states": filled_up(words, context or 0)}
    if session.inputs["sample"][0] is None:
        return session.run(inputs)
    # A graph of fixed batch 1 runs the guided pair one after the other.
    return np.concatenate([session.run(row) for row in split_batch(inputs)])


def open_unet(bundle: Bundle, engine: str, float_type: str = F32, threads: int | None = None) -> Session:
    """The bundle's U-Net in a session of its own, so that what a pipeline has bound stays bound."""
    return open_graph(bundle, engine, UNET, float_type, threads)


def open_graph(bundle: Bundle, engine: str, component: str, float_type: str = F32, threads: int | None = None) -> Session:
    """One of the bundle's graphs in a session of its own; on all cores unless `threads` are given."""
    opened = open_engine(engine, bundle.manifest.engines, bundle.manifest.precision)
    with bundle.graph_to_load(component) as file:
        return denoiser_engine(opened, float_type, bundle.manifest).engine.load(file, threads or default_threads())


def bundle_effects(
    pipe: QuadPipeline, reference: Reference, model: Path, adapters: Mapping[str, Path], runs: int
) -> dict[str, Effect | None]:
    """Task -> its adapter's effect at the U-Net's output along so many held-out runs of each, from nothing but a bundle and its model."""
    probes = calls_in_turns(held_out_probes(model, adapters, pipe.tasks, runs, reference.device))
    true, store = true_effects(reference, probes), AdapterStore(pipe.bundle)
    groups = {name: store.group_of({name: 1.0}) for name in store.names}
    parts: dict[tuple[int, int], list[TrueEffect]] = {}  # each adapter in its own group's graph; tasks in two halves
    tasks = sorted({each.probe.task for each in true})
    for each in true:
        if each.probe.source in groups:
            parts.setdefault((groups[each.probe.source], tasks.index(each.probe.task) % 2), []).append(each)

    def measured(part: tuple[int, int]) -> dict[str, Effect | None]:
        session = open_unet(pipe.bundle.of_group(part[0]), pipe.engine, pipe.float_type, ENGINE_THREADS)
        return network_effects(session, AdapterStore(pipe.bundle), parts[part])

    return {task: effect for effects in side_by_side(measured, parts) for task, effect in effects.items()}


def picture_effect(fp: Array, fp_zero: Array, quantized: Array, quantized_zero: Array) -> Effect | None:
    """The same of whole pictures, uint8 `(N, S, S, 3)`: both sides with the adapter and with the zero adapter, from the same noise."""
    return effect_of([unit(fp) - unit(fp_zero)], [unit(quantized) - unit(quantized_zero)])
