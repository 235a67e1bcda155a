"""Admission with the base model at hand: the adapter aligned as a build would have, and measured against the float model it was trained on.

The float network is the base with the slots of the bundle. The simulated one is made of it by what the bundle has kept: the profile,
corrected biases, the gains of equalized norms, split skips, and the weights of its graph where they are rounded with compensation.
Quality is then measured on the bundle's own graph by its own engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.admit.request import AdaptRequest
from quad.build.admission_data import Corrections
from quad.build.align_adapters import RUNS, SEED
from quad.build.calls.call_recorder import spread
from quad.build.calls.float_teacher import MEASURED_CALLS, measured_on
from quad.compile.placement.stored_weights import stored_weights
from quad.core.component_call import UNET_INPUTS, Inputs, split_batch
from quad.core.correction import steps_of_byte
from quad.core.encoding import Encoding
from quad.core.errors import CompatibilityError, InputError, mismatch
from quad.core.manifest import CORRECTIONS_FILE, TaskSpec
from quad.core.profile import Profile
from quad.core.slots import UNET, Slot, SlotTable
from quad.core.tensor_names import Role, role_of, weight_name
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.base.modules import share_copy
from quad.model.base.open import Base, BaseOptions, open_model
from quad.model.base.text.clip_skip import with_clip_skip
from quad.model.base.text.prompt_chunks import with_prompt_chunks
from quad.model.slots.layers import apply_weight, layers_of
from quad.model.slots.network import SlottedNetwork, slotted_as
from quad.model.slots.skips import split_skips
from quad.quantize.correct.bias import apply_biases
from quad.quantize.correct.smooth import fold_scales
from quad.quantize.distill.distill import Distilled, TeacherStudent, distill, split_runs
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import Fidelity, TeacherCall, call_teacher, fidelity
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.file import bundle_zeros, correction_of
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Session
from quad.runtime.golden_outputs import unet_buffers


@dataclass(frozen=True, kw_only=True)
class BaseNetworks:
    """The float networks of the base with the bundle's slots, and the U-Net as the bundle quantizes it.

    Args:
        base: with the adapter's task alone.
        adapter: as it was trained, for the networks as they are here.
        networks: float, by component.
        pair: float U-Net and simulated one.
        is_exact: the simulated one is the bundle's; not where its rounded weights lie in a chip's binary.
        table: slots that hold the adapter at its own ranks.
    """

    base: Base
    adapter: FloatAdapter
    networks: Mapping[str, nn.Module]
    pair: TeacherStudent
    is_exact: bool
    table: SlotTable

    @staticmethod
    def of(bundle: Bundle, base: Base, tasks: Mapping[str, TaskSpec], adapter: FloatAdapter) -> BaseNetworks:
        """Teacher and student of a bundle.

        Args:
            base: of `open_base`.
            tasks: what the adapter is measured at.
            adapter: at its own ranks, with the bundle's channel gains.

        Raises:
            CompatibilityError: the bundle does not say how its U-Net was corrected.
        """
        slotted, corrections = slotted_as(base.unet, base.text_encoder, bundle.slots), _corrections(bundle)
        fold_scales(slotted.unet, corrections.gains)
        if _is_split(bundle.profile):
            split_skips(slotted.unet)
        student = share_copy(slotted.unet)
        apply_biases(student, dict(corrections.biases))
        is_exact = _apply_stored_weights(student, bundle, corrections.compensated)
        _apply_correction(student, bundle)
        networks = component_networks(base, slotted.unet, slotted.text_encoder)
        pair = TeacherStudent(teacher=slotted.unet, student=student, table=bundle.slots, profile=bundle.profile)
        return BaseNetworks(
            base=replace(base, tasks=dict(tasks)),
            adapter=adapter,
            networks=networks,
            pair=pair,
            is_exact=is_exact,
            table=_widened(bundle.slots, adapter),
        )

    def probes(self, samples: Sequence[CalibrationSample]) -> list[Probe]:
        """Calls of the float network along a run of each sample, with its answers."""
        options = ProbeOptions(per_adapter=None, seed=SEED)
        return record_probes(self.base, self.networks, self.table, [self.adapter], samples, options)[self.adapter.name]

    def align(self, fitted: FloatAdapter, probes: Sequence[Probe], options: DistillOptions) -> Distilled:
        """See `distill`; the teacher has the adapter at its own ranks."""
        return distill(self.pair, fitted, probes, options)

    def teacher_calls(self, probes: Sequence[Probe]) -> list[TeacherCall]:
        """These calls with the float network's answers, with the adapter and without."""
        return call_teacher(self.pair.teacher, slot_inputs(self.adapter, self.table), probes)


def measured_probes(probes: Sequence[Probe], *, is_trained: bool) -> list[Probe]:
    """A few calls that nothing was trained on, as far as there are: of all runs, or of those that training holds out."""
    most = 2 * MEASURED_CALLS
    return spread(split_runs(probes)[1], most) if is_trained else measured_on(probes, most)


def open_base(bundle: Bundle, directory: Path, vae: Path | None = None) -> Base:
    """The model that a bundle was built from, with pictures of the bundle's size and its tasks.

    Args:
        vae: the autoencoder's file or directory, in place of the model's own.

    Raises:
        CompatibilityError: it is another model.
    """
    manifest = bundle.manifest
    base = with_prompt_chunks(
        with_clip_skip(open_model(directory, BaseOptions(vae=vae)), manifest.text.skipped_layers + 1), manifest.text.most_chunks
    )
    expected = manifest.parents.get("base", "none")
    if base.digest_as(expected) != expected:
        where, hint = f"--base {directory}", "give that one"
        raise CompatibilityError(mismatch(where, f"digest {expected[:8]}, of which the bundle was built", base.digest[:8], hint))
    return replace(base, picture_size=manifest.picture_size, tasks=dict(manifest.tasks))


def samples_for(request: AdaptRequest, task: str, spec: TaskSpec) -> list[CalibrationSample]:
    """Samples of the adapter's task, `RUNS` of them, each with noise of its own.

    Those that name the adapter go first, then those of its task or of the one it is like; with the request's prompts, where it has any.

    Raises:
        InputError: there is none.
    """
    named = [sample for sample in request.samples if sample.adapter == request.name]
    alike = [sample for sample in request.samples if sample.task in (request.like, task)]
    named, alike = ([sample for sample in group if sample.image is not None or not spec.reads_picture] for group in (named, alike))
    candidates = named or alike
    if not candidates:
        raise InputError(mismatch(f"adapter {request.name!r}", f"samples of task {task}", "none", "say what it is like: --like TASK"))
    samples = [replace(sample, task=task, adapter=request.name) for sample in islice(cycle(candidates), RUNS)]
    if not request.prompts:
        return samples
    return [replace(sample, prompt=prompt) for sample, prompt in zip(samples, cycle(request.prompts), strict=False)]


def measure_fidelity(bundle: Bundle, session: Session, teacher_calls: Sequence[TeacherCall], forms: Sequence[Buffers]) -> list[Fidelity]:
    """How near the bundle's own graph comes to the float network on some calls, with the adapter and in what it changes.

    Args:
        forms: of the adapter, each measured for itself.
    """

    def outputs(buffers: Buffers) -> list[Tensor]:
        session.bind(unet_buffers(bundle, buffers))
        return [torch.from_numpy(np.concatenate([session.run(call) for call in calls_in(teacher_call)])) for teacher_call in teacher_calls]

    without = outputs(bundle_zeros(bundle))
    return [fidelity(teacher_calls, outputs(form), without) for form in forms]


def calls_in(teacher_call: TeacherCall) -> list[Inputs]:
    """A teacher call as calls of one picture each, as graphs of batch 1 take them."""
    return split_batch({name: part.numpy() for name, part in zip(UNET_INPUTS, teacher_call.inputs, strict=True)})


def _corrections(bundle: Bundle) -> Corrections:
    if bundle.profile.has_float_slots:
        return Corrections({}, {})
    if CORRECTIONS_FILE not in bundle.manifest.files:
        where, expected = f"bundle {bundle.name!r}", f"what its build corrected ({CORRECTIONS_FILE})"
        raise CompatibilityError(mismatch(where, expected, "none, it is of an older build", "build it again"))
    return Corrections.read(bundle.read(CORRECTIONS_FILE))


def _apply_correction(student: SlottedNetwork, bundle: Bundle) -> None:
    """Put the base's correction behind every adapter's channels, in the slots' own numbers."""
    if not bundle.slots.corrected:
        return
    tensors, encodings = correction_of(bundle), bundle.profile.component(UNET)
    for slot in bundle.slots.of(UNET).slots:
        for name in (slot.a_name, slot.b_name) if slot.a_name in tensors else ():
            values = tensors[name].astype(np.float32) * np.float32(steps_of_byte(slot) * encodings[name].scale[0])
            student.correction[name] = torch.from_numpy(values)
        if slot.scale_name in tensors:
            student.correction[slot.scale_name] = torch.from_numpy(tensors[slot.scale_name])


def _apply_stored_weights(student: nn.Module, bundle: Bundle, paths: Sequence[str]) -> bool:
    """Give these layers of the student the weights of the bundle's graph; False, and nothing is done, where it does not tell them."""
    if not paths:
        return True
    layers = layers_of(student)
    with bundle.graph_to_load(UNET, group=0) as file:  # the weights are those of all groups, and the first has them by name
        shapes = {weight_name(path): tuple(layers[path].weight.shape) for path in paths}
        stored = _graph_weights(file, shapes, bundle.profile.component(UNET))
    if len(stored) < len(paths):
        return False
    for path in paths:
        apply_weight(layers[path], stored[weight_name(path)])
    return True


def _graph_weights(file: Path, shapes: Mapping[str, tuple[int, ...]], encodings: Mapping[str, Encoding]) -> dict[str, NDArray[np.float32]]:
    """Name -> values of those weights that a graph tells."""
    if file.suffix == ".tflite":
        from quad.compile.litert import stored_weights as tflite  # imports LiteRT, an extra, which runs the bundle

        return tflite.stored_weights(file.read_bytes(), shapes)
    if file.suffix != ".onnx":
        return {}
    return {name: encodings[name].dequantize(integers) for name, integers in stored_weights(ir.load(file), shapes).items()}


def _is_split(profile: Profile) -> bool:
    return any(role_of(name) is Role.SKIP_INPUT for name in profile.component("unet"))


def _widened(table: SlotTable, adapter: FloatAdapter) -> SlotTable:
    """The slots with room for the adapter as it is; ranks are no part of a float network."""
    ranks = {path: pair.rank for path, pair in adapter.weights.items()}

    def widened(slot: Slot) -> Slot:
        more = ranks.get(slot.path, 1) - slot.adapter_rank
        return msgspec.structs.replace(slot, rank=slot.rank + max(more, 0))

    return table.with_slots(map(widened, table.slots))
