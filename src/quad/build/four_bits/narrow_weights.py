"""The stage `narrow`: weights at 4 bits, and the U-Net's correction beside them, in the networks, before ranges are measured.

So what comes after it, ranges, sensitivity, alignment, sees the network that will run. The float teacher shares none of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.build.calls.calibration_runs import few_places, gather_grams
from quad.build.calls.recorded_runs import RecordedRuns
from quad.build.open_and_slot import SlottedModel
from quad.build.request import COMPENSATED, BuildRequest
from quad.compile.targets import load_target
from quad.core.correction import BYTE_END, steps_of_byte
from quad.core.encoding import Encoding
from quad.core.profile import Profile
from quad.core.progress import Progress, silent, with_progress
from quad.core.slots import UNET, Slot, SlotTable
from quad.core.tensor_names import weight_name
from quad.model.slots.layers import apply_integers, layers_of, weight_array
from quad.quantize.correct.four_bits import Correction, FourBitWeight, four_bit_weight
from quad.quantize.correct.simulate import mark_lattice
from quad.quantize.observe.input_grams import InputGram, Key, weigh_effects
from quad.quantize.observe.side_by_side import side_by_side

EFFECTS = 0.3  # energy of what adapters change in a layer's inputs, beside the inputs' own (ADR 59)
SEED = 30_000  # other noise than calibration, sensitivity and alignment draw
_PIECE = "narrowed"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NarrowWeights:
    """The weights of 4 bits.

    Args:
        encodings: component -> name -> encoding.
        corrections: path of a slot of the U-Net -> its correction.
    """

    encodings: Mapping[str, Mapping[str, Encoding]] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)

    @property
    def largest_scales(self) -> dict[str, float]:
        """Slot path -> the largest scale of its correction."""
        return {path: float(correction.scales.max(initial=0.0)) for path, correction in self.corrections.items()}

    def tensors(self, slots: SlotTable, profile: Profile) -> dict[str, NDArray[Any]]:
        """The file of the correction: bytes that are whole steps of the slots' encodings, and scales that make up for the rest."""
        encodings, tensors = profile.component(UNET), dict[str, NDArray[Any]]()
        for path, correction in self.corrections.items():
            slot = slots.by_path()[path]
            a, b = (encodings[name].scale[0] * steps_of_byte(slot) * BYTE_END for name in (slot.a_name, slot.b_name))
            tensors[slot.a_name], tensors[slot.b_name] = _as_slot(correction, slot)
            tensors[slot.scale_name] = (correction.scales / np.float64(a * b)).astype(np.float32)
        return tensors


def narrow_weights(request: BuildRequest, model: SlottedModel, progress: Progress = silent) -> NarrowWeights:
    """Write weights of 4 bits and their correction into the networks of `model`; others that share its weights do not see it."""
    piece = model.cache.read(_PIECE)
    narrowed = _of_arrays(piece[1]) if piece is not None else _narrowed(request, model, progress)
    if piece is None:
        model.cache.write(_PIECE, None, _arrays(narrowed))
    del piece
    layers, slots = {component: layers_of(network) for component, network in model.networks.items()}, model.table.by_path()
    corrections: dict[str, torch.Tensor] = model.networks[UNET].correction  # type: ignore[assignment]
    encodings: dict[str, dict[str, Encoding]] = {component: {} for component in model.networks}
    of_slots, count = dict[str, Correction](), len(narrowed)
    for component, path in list(narrowed):
        layer = narrowed.pop((component, path))  # its integers go with it: those of all would lie beside the weights of two networks
        target = layers[component][path]
        encodings[component][weight_name(path)] = layer.weight.encoding
        apply_integers(target, layer.weight.integers, layer.weight.encoding)
        mark_lattice(target.weight, layer.weight.encoding)
        if target.bias is not None and request.quality.bias_correction:
            target.bias = nn.Parameter(target.bias - torch.from_numpy(layer.shift).to(target.bias.device), requires_grad=False)
        if layer.weight.correction is not None:
            corrections.update(_as_bound(layer.weight.correction, slots[path], target.weight.device))
            of_slots[path] = layer.weight.correction
    _log.info("weights of %d layers at 4 bits", count)
    return NarrowWeights(encodings, of_slots)


def without_correction(networks: Mapping[str, nn.Module]) -> None:
    """Take the corrections out of the networks: graphs read them as inputs."""
    for network in networks.values():
        correction: dict[str, torch.Tensor] = getattr(network, "correction", {})
        correction.clear()


@dataclass(frozen=True)
class _NarrowLayer:
    """A weight, and the mean of its error in the layer's output `(out,)` on the inputs seen."""

    weight: FourBitWeight
    shift: NDArray[np.float32]


def _narrowed(request: BuildRequest, model: SlottedModel, progress: Progress) -> dict[Key, _NarrowLayer]:
    chosen, samples = model.four_bit_layers, [model.samples[place] for place in few_places(model.samples)]
    runs = RecordedRuns(
        base=model.measured, networks=model.networks, table=model.table, adapters=model.adapters, samples=samples, seed=SEED
    )
    feeds = with_progress(runs.feeds(), len(samples), "narrow", progress)
    grams = gather_grams(model, lambda component, path: (component, path) in chosen, feeds)
    calls = [call for call in runs.calls(UNET) if call.slots]
    weigh_effects(model.networks[UNET], {path: gram for (component, path), gram in grams.items() if component == UNET}, calls, EFFECTS)
    layers = {component: layers_of(network) for component, network in model.networks.items()}
    slots, signed = model.table.of(UNET).by_path(), load_target(request.target).signed_four_bits

    def narrow(key: Key) -> _NarrowLayer:
        component, path = key
        weight, gram = weight_array(layers[component][path]), grams.pop(key)  # the last layer that has these inputs frees their matrix
        slot = slots.get(path) if component == UNET else None
        rank = 0 if slot is None or slot.correction is msgspec.UNSET else slot.correction
        used = gram.grams if request.rounding == COMPENSATED else None
        result = four_bit_weight(weight, used, rank=rank, metric=gram.grams, signed=signed)
        return _NarrowLayer(result, _shift(weight, result, gram))

    keys = list(grams)
    return dict(zip(keys, side_by_side(narrow, keys), strict=True))


def _shift(weight: NDArray[np.float32], result: FourBitWeight, gram: InputGram) -> NDArray[np.float32]:
    error = (result.encoding.dequantize(result.integers) - weight).reshape(len(weight), -1)
    mean = gram.mean.numpy()
    shift = (error @ mean.astype(np.float32)).astype(np.float64)
    if (correction := result.correction) is not None:
        shift += correction.b @ (correction.scales.astype(np.float64) / BYTE_END**2 * (correction.a @ mean))
    return np.asarray(shift, np.float32)


def _as_slot(correction: Correction, slot: Slot) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """A and B in the shapes of the slot's inputs."""
    rank = len(correction.scales)
    return correction.a.reshape(rank, *slot.a_shape[1:]), correction.b.reshape(slot.b_shape[0], rank, *slot.b_shape[2:])


def _as_bound(correction: Correction, slot: Slot, device: torch.device) -> dict[str, torch.Tensor]:
    """As the slotted network reads it: A and B end at 1."""
    a, b = (torch.from_numpy(part.astype(np.float32) / BYTE_END).to(device) for part in _as_slot(correction, slot))
    return {slot.a_name: a, slot.b_name: b, slot.scale_name: torch.from_numpy(correction.scales).to(device)}


def _arrays(narrowed: Mapping[Key, _NarrowLayer]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for (component, path), layer in narrowed.items():
        weight = layer.weight
        parts: dict[str, Any] = {"q": weight.integers, "s": weight.encoding.scale, "z": weight.encoding.zero_point, "shift": layer.shift}
        if weight.correction is not None:
            parts |= {"a": weight.correction.a, "b": weight.correction.b, "c": weight.correction.scales}
        types = {"s": np.float32, "z": np.int64}
        arrays |= {f"{component}/{path}/{name}": np.asarray(part, types.get(name)) for name, part in parts.items()}
    return arrays


def _of_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[Key, _NarrowLayer]:
    """The results of `_arrays`."""
    narrowed: dict[Key, _NarrowLayer] = {}
    for place in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
        scale, zero = (tuple(arrays[f"{place}/{name}"].tolist()) for name in ("s", "z"))
        signed = np.issubdtype(arrays[f"{place}/q"].dtype, np.signedinteger)
        encoding = Encoding(bits=4, signed=signed, symmetric=signed, scale=scale, zero_point=zero, axis=0)
        correction = None
        if f"{place}/a" in arrays:
            correction = Correction(a=arrays[f"{place}/a"], b=arrays[f"{place}/b"], scales=arrays[f"{place}/c"])
        weight = FourBitWeight(integers=arrays[f"{place}/q"], encoding=encoding, correction=correction)
        component, _, path = place.partition("/")
        narrowed[component, path] = _NarrowLayer(weight, arrays[f"{place}/shift"])
    return narrowed
