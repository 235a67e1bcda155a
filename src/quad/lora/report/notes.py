"""Notes on an adapter, a line each: what was converted or reduced and what that lost, and what of its file was left out.

What two matrices miss of a module's change of weights `D` is told as an error, `|D - B A| / |D|`: the root of the lost share of its
energy, so that 0.9 of the energy is an error of 0.32. Of the whole adapter it is the same over all modules together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from quad.core.errors import InputError, mismatch
from quad.lora.adapter import FloatAdapter, ModuleOrigin
from quad.lora.convert import Converted
from quad.lora.kinds import WITH_DORA, beside
from quad.lora.low_rank import CONVERTED_ENERGY, RankLimits
from quad.lora.quote import listed
from quad.lora.tensors import StoredTensor

_WITH_ALPHA = tuple(f"{kind}{dora}" for kind in ("LoRA", "Tucker", "LoHa") for dora in ("", WITH_DORA))
LARGE_ERROR = 0.1  # of the whole adapter: from here on the note says how to keep more


def module_error(energy: float) -> float:
    """Of a module's change of weights, relative, by the share of its energy that is kept."""
    return math.sqrt(max(0.0, 1.0 - energy))


def conversion_notes(converted: Collection[Converted]) -> tuple[str, ...]:
    """A line for each kind that was converted, after those on layers that get a part."""
    energies: dict[str, list[float]] = {}
    for module in converted:
        if module.energy is not None:
            energies.setdefault(module.kind, []).append(module.energy)
    narrow = tuple(module.note for module in converted if module.note)
    return narrow + tuple(
        f"{len(shares)} modules of {kind} converted, energy kept {min(shares):.4f} at worst, {np.mean(shares):.4f} on average"
        for kind, shares in energies.items()
    )


def alpha_notes(origins: Iterable[ModuleOrigin]) -> tuple[str, ...]:
    """A line about modules of a rank that alpha goes with, and no alpha anywhere."""
    count = sum(origin.alpha is None and origin.kind in _WITH_ALPHA for origin in origins)
    text = f"no alpha for {count} modules: they count as they are (alpha = rank), as diffusers and sd-scripts read them"
    return (text,) if count else ()


def error_notes(adapter: FloatAdapter, enough: int) -> tuple[str, ...]:
    """A line with the error of an adapter that was converted or reduced; where it is large, also how to keep more.

    Args:
        enough: rank with which each module would keep all that a conversion keeps; 0 where that is not known.
    """
    if not adapter.energy or (error := adapter.error) < 5e-6:
        return ()
    worst = min(adapter.energy, key=lambda path: adapter.energy[path])
    text = f"its change of weights is off by {error:.2%}, {module_error(adapter.energy[worst]):.2%} at worst ({worst})"
    large = enough > adapter.rank and max(error, module_error(adapter.energy[worst])) > LARGE_ERROR
    return (f"{text}; rank {enough} for this adapter alone would keep {CONVERTED_ENERGY:.1%} of each module" if large else text,)


def require_energy(name: str, energy: Mapping[str, float], limits: RankLimits, enough: int = 0) -> None:
    """Refuse an adapter of which some module keeps too little.

    Args:
        energy: module path -> share kept.
        enough: as `error_notes`.

    Raises:
        InputError: the worst modules are named.
    """
    low = sorted((share, path) for path, share in energy.items() if share < limits.min_energy)
    if low:
        worst = listed(f"{path} {share:.3f}" for share, path in low)
        alone = f", or give it rank {enough} of its own (--adapter NAME=PATH,rank={enough})" if enough else ""
        expected = f"{limits.min_energy:g} of each module's energy at its rank"
        raise InputError(mismatch(f"adapter {name!r}", expected, worst, f"raise --max-rank{alone}, or lower --min-energy"))


def skipped_notes(paths: Collection[str]) -> tuple[str, ...]:
    """A line about modules of layers that a shorter text encoder leaves out."""
    return (f"{len(paths)} modules left out, of text encoder layers that clip skip leaves out: {listed(paths)}",) if paths else ()


def without_effect(tensors: Mapping[str, StoredTensor], key: str) -> bool:
    """Whether a key that matches no layer would change nothing: zeros, or the places of a sparse bias, whose values count."""
    return key.endswith((".bias_indices", ".bias_size")) or not tensors[key].values().any()


def left_out(tensors: Mapping[str, StoredTensor], unused: Iterable[str]) -> tuple[str, ...]:
    """A line for each kind of tensors that are left out, with how large they are."""
    kinds: dict[str, list[str]] = {}
    for key in unused:
        kinds.setdefault(beside(key) or "keys that match nothing", []).append(key)

    def largest(keys: list[str]) -> float:
        return max(float(np.abs(tensors[key].values()).max()) for key in keys)

    return tuple(
        f"{len(keys)} {'' if kind.startswith('keys') else 'tensors of '}{kind} left out, largest value {largest(keys):.3g}: {listed(keys)}"
        for kind, keys in kinds.items()
    )
