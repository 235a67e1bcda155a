"""An adapter that was packed for another bundle of the same model: its integers become floats again, and are rounded anew for this one.

It was trained and fitted once; what two bundles of one model differ in are ranges, units and gains of channels, and that its pack tells
with the profile of the bundle it was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import CompatibilityError, mismatch
from quad.core.profile import Profile
from quad.core.sampling import AdapterDefaults
from quad.core.slots import Slot
from quad.lora.fit.channel_gains import smooth_adapter
from quad.lora.read import FloatAdapter, LowRank
from quad.runtime.adapters.file import bundle_zeros, check_parents, open_adapter
from quad.runtime.bundle import Bundle, open_bundle


def pack_defaults(path: Path) -> AdapterDefaults:
    """How a packed adapter is meant to be run, by its manifest.

    Raises:
        InputError, VerificationError: as `quad.runtime.adapters.file.open_adapter`.
    """
    stated = open_adapter(path).manifest.defaults
    return AdapterDefaults() if stated is msgspec.UNSET else stated


def unpacked(name: str, path: Path, made_for: Path, bundle: Bundle) -> FloatAdapter:
    """A packed adapter as floats, as if its LoRA had been read for `bundle`.

    Args:
        path: a pack, or a directory of `adapters` in a bundle.
        made_for: directory of the bundle that it was packed for.
        bundle: another one of the same model.

    Raises:
        CompatibilityError: it was packed for a third bundle, or the two are of different models. InputError, VerificationError: a file is
        missing, is no pack, or was changed.
    """
    source = open_bundle(made_for)
    base, other = (one.manifest.parents.get("base", "none") for one in (bundle, source))
    if base != other:
        where, hint = f"--packed-for {made_for}", "read the LoRA itself, for this model"
        raise CompatibilityError(mismatch(where, f"a bundle of the model {base[:8]}", f"one of {other[:8]}", hint))
    file = open_adapter(path)
    check_parents(file.manifest, source)
    tensors, profile = file.own_tensors(bundle_zeros(source)), source.profile
    weights = {slot.path: _pair(slot, tensors, profile) for slot in source.slots.of_adapters.slots if slot.a_name in tensors}
    note = f"from integers that were packed for bundle {source.name!r}, rounded a second time"
    adapter = FloatAdapter(
        name=name,
        weights=weights,
        rank=max((pair.rank for pair in weights.values()), default=1),
        digest=file.manifest.parents.get("source", "none"),
        notes=(note,),
    )
    gains = {path: 1.0 / np.asarray(gain, np.float32) for of_part in profile.gains.values() for path, gain in of_part.items()}
    return replace(adapter, weights=smooth_adapter(adapter, gains).weights)


def _pair(slot: Slot, tensors: Mapping[str, NDArray[Any]], profile: Profile) -> LowRank:
    """A and B of a slot as floats, the scales of its rank channels in B."""
    encodings = profile.component(slot.component)
    a, b = (
        encodings[name].dequantize(tensors[name]) if name in encodings else np.asarray(tensors[name], np.float32)
        for name in (slot.a_name, slot.b_name)
    )
    scales = tensors.get(slot.scale_name)
    return LowRank(a, b if scales is None else (b * scales.reshape(1, -1, *[1] * (b.ndim - 2))).astype(np.float32))
