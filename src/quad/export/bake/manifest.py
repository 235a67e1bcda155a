"""The manifest of a bundle once adapters are merged into it: tasks, profile, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from quad.core.encoding import Encoding
from quad.core.manifest import AdapterManifest, MergedAdapter, TaskSpec
from quad.core.profile import Profile
from quad.core.sampling import AdapterDefaults, SamplerSettings
from quad.core.slots import SlotTable
from quad.core.tensor_names import lora_mid_name, weight_name
from quad.export.bake.graph import MergedWeight
from quad.export.bake.merge import LatticeWeight
from quad.runtime.adapter_defaults import Presets, joint_defaults, with_defaults


@dataclass(frozen=True)
class MergedTasks:
    """The tasks of a merged bundle.

    Args:
        tasks: by name; none needs an adapter.
        left_out: those of other adapters.
        notes: on samplers and guidance that the adapters bring.
    """

    tasks: dict[str, TaskSpec]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def merged_tasks(tasks: Mapping[str, TaskSpec], weights: Mapping[str, float], defaults: Mapping[str, AdapterDefaults],
                 samplers: Mapping[str, SamplerSettings]) -> MergedTasks:  # fmt: skip
    """The base's tasks and those of the merged adapters, with the sampler and guidance that these bring.

    Args:
        tasks: as a pipeline has them, an adapter's own before the bundle's.
        samplers: see `BundleManifest.samplers`.

    Raises:
        CompatibilityError: an adapter brings a sampler that this version has not.
    """
    joint, notes = joint_defaults(weights, Presets(defaults, samplers))
    kept = {name: spec for name, spec in tasks.items() if spec.adapter is None or spec.adapter in weights}
    return MergedTasks(
        tasks={name: msgspec.structs.replace(with_defaults(spec, joint, samplers), adapter=None) for name, spec in kept.items()},
        left_out=tuple(name for name in tasks if name not in kept),
        notes=notes,
    )


def merged_adapters(manifests: Sequence[AdapterManifest], weights: Mapping[str, float]) -> tuple[MergedAdapter, ...]:
    """The entry of each adapter in the bundle's manifest; `manifests` are in the order of the weights."""
    return tuple(
        MergedAdapter(name=name, weight=weights[name], sha256=manifest.sha256, parents=manifest.parents, defaults=manifest.defaults)
        for name, manifest in zip(weights, manifests, strict=True)
    )


def merged_profile(profile: Profile, slots: SlotTable, weights: Mapping[str, Mapping[str, MergedWeight]]) -> Profile:
    """The profile without slots, with the steps that weights have now.

    Args:
        weights: component -> slot path -> its layer's weight.
    """
    gone = {*slots.input_shapes(), *(lora_mid_name(slot.path) for slot in slots.slots)}
    encodings = {}
    for component, before in profile.encodings.items():
        new = {weight_name(path): layer.weight for path, layer in weights.get(component, {}).items()}
        encodings[component] = {
            name: _encoding(encoding, new[name]) if name in new else encoding for name, encoding in before.items() if name not in gone
        }
    return msgspec.structs.replace(profile, encodings=encodings, gains={})


def _encoding(before: Encoding, weight: LatticeWeight) -> Encoding:
    if weight.scale is None:
        return before
    scale = tuple(float(s) for s in np.atleast_1d(weight.scale))
    return msgspec.structs.replace(before, scale=scale, bits=8 * weight.array.dtype.itemsize)
