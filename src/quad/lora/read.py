"""Adapters as floats: a LoRA file of any dialect and kind becomes two matrices per module, alpha already folded into B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from quad.core.errors import CompatibilityError, InputError, UnsupportedError, mismatch
from quad.lora.convert import Converted, convert, shaped
from quad.lora.file import LoraFile, open_lora
from quad.lora.float_adapter import FloatAdapter, LowRank
from quad.lora.keys import Role, is_text_key, parse_key, refuse_other_kinds, shown
from quad.lora.low_rank import Product, RankLimits
from quad.lora.module_names import TEXT_PREFIX, Names, network_names
from quad.lora.other_bases import base_by_names, base_by_width, reads_text
from quad.lora.skeleton import Unslotted
from quad.lora.target import Target

__all__ = ["FloatAdapter", "LowRank", "RankLimits", "read_lora", "reduced"]

_LISTED = 8
Layers = dict[str, nn.Linear | nn.Conv2d]


@dataclass
class _Module:
    """The tensors of one module as they are found, and the key of each."""

    tensors: dict[Role, Tensor] = field(default_factory=dict)
    keys: dict[Role, str] = field(default_factory=dict)


def _layers(network: nn.Module | None) -> Layers:
    return {} if network is None else {p: m for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def _listed(items: Iterable[str]) -> str:
    known = [shown(item) for item in items]
    return ", ".join(known[:_LISTED]) + (f" and {len(known) - _LISTED} more" if len(known) > _LISTED else "")


def _group(where: str, file: LoraFile, names: Names) -> tuple[dict[str, _Module], list[str]]:
    """Tensors by slot path and role, and the keys that match no module."""
    modules: dict[str, _Module] = {}
    unused: list[str] = []
    for name, tensor in file.tensors.items():
        key = parse_key(name)
        path = None if key is None else names.find(key)
        if key is None or path is None:
            unused.append(name)
            continue
        module = modules.setdefault(path, _Module())
        if key.role in module.tensors:
            raise InputError(
                mismatch(
                    where, f"one {key.role} for {path!r}", f"'{shown(module.keys[key.role])}' and '{shown(name)}'", "leave one of them out"
                )
            )
        module.tensors[key.role], module.keys[key.role] = tensor, name
    return modules, unused


def _refuse_text(file: LoraFile) -> None:
    for name in file.tensors:
        if (key := parse_key(name)) is not None and is_text_key(key):
            raise UnsupportedError(
                mismatch(
                    f"key '{shown(name)}'", "U-Net LoRA keys", "text-encoder LoRA", "strip the text-encoder keys, or give the text encoder"
                )
            )


def _require_base(where: str, file: LoraFile, unused: Iterable[str], found: Mapping[str, _Module], layers: Layers) -> None:
    """Refuse an adapter of another base, with that base's name.

    Raises:
        InputError: keys, or the width of the text features, are of another base.
    """
    said = f" (its metadata says {file.trained_on})" if file.trained_on else ""
    then = "use a LoRA of this base, or build on that base"
    if (known := base_by_names(unused)) is not None:
        raise InputError(mismatch(where, "a LoRA for this base", f"one for {known[0]}, by key '{shown(known[1])}'{said}", then))
    for path, module in found.items():
        if not reads_text(path) or "down" not in module.tensors or module.tensors["down"].ndim < 2:
            continue
        width, wanted = int(module.tensors["down"].shape[1]), int(layers[path].weight.shape[1])
        if width != wanted:
            expected = f"text features of width {wanted}, as this base has"
            raise InputError(
                mismatch(f"{where}, {path}", expected, f"{tuple(module.tensors['down'].shape)}: {base_by_width(width)}{said}", then)
            )


def _require_matches(where: str, file: LoraFile, found: Mapping[str, _Module], unused: list[str], allow_unused: bool) -> None:
    if found and (allow_unused or not unused):
        return
    then = "pass --allow-unused-keys to leave them out" if found else "is it for another base model?"
    problem = f"{len(unused)} of {len(file.tensors)} match nothing: {_listed(unused)}" if unused else "no tensors at all"
    raise InputError(mismatch(where, "every key to match a Linear or Conv2d of the model", problem, then))


def require_slots(name: str, outside: Iterable[str]) -> None:
    """Refuse an adapter with targets that have no slot in a bundle.

    Raises:
        CompatibilityError: names them.
    """
    if missing := sorted(outside):
        then = "build the bundle again with this adapter, or train it on fewer modules"
        raise CompatibilityError(mismatch(f"adapter {name!r}", "targets among the bundle's slots", f"{_listed(missing)} without one", then))


def _notes(converted: Iterable[Converted]) -> tuple[str, ...]:
    """A line for each kind that was converted."""
    energies: dict[str, list[float]] = {}
    for one in converted:
        if one.energy is not None:
            energies.setdefault(one.kind, []).append(one.energy)
    counts = Counter({kind: len(kept) for kind, kept in energies.items()})
    return tuple(
        f"{count} modules of {kind} converted, energy kept {min(energies[kind]):.4f} at worst, {np.mean(energies[kind]):.4f} on average"
        for kind, count in counts.items()
    )


def _require_energy(name: str, energy: Mapping[str, float], limits: RankLimits) -> None:
    low = sorted((kept, path) for path, kept in energy.items() if kept < limits.min_energy)
    if low:
        worst = _listed(f"{path} {kept:.3f}" for kept, path in low)
        raise InputError(
            mismatch(f"adapter {name!r}", f"{limits.min_energy:g} of each module's energy at its rank", worst,
                     "raise --max-rank, or lower --min-energy")
        )  # fmt: skip


def read_lora(
    name: str, path: Path, network: nn.Module, allow_unused: bool = False, *, text_encoder: nn.Module | None = None,
    limits: RankLimits | None = None,
) -> FloatAdapter:  # fmt: skip
    """Read a LoRA file (or PEFT / diffusers directory) for `network`.

    Args:
        name: the adapter's name.
        network: the U-Net it was trained on; its Linear and Conv2d paths give the keys their meaning.
        allow_unused: pass over keys that match nothing (`--allow-unused-keys`), as long as some match.
        text_encoder: the CLIPTextModel; its modules get paths `text_encoder.<path>`. None refuses LoRA of a text encoder.
        limits: the largest rank, and how much of an update may be lost to it.

    Raises:
        InputError: missing, pickled or truncated file, another base's, keys that match nothing or the same module twice, wrong shapes, rank
        0, NaN or Inf, or too little energy kept.
        UnsupportedError: OFT, IA3 and other kinds than those of `quad.lora.convert`, or text-encoder LoRA without `text_encoder`.
        CompatibilityError: `network` is a bundle's skeleton, and a target has no slot.
    """
    limits = limits or RankLimits()
    limits.check()
    file = open_lora(path)
    where = f"adapter {name!r} ({file.path.name})"
    refuse_other_kinds(file.tensors)
    unet, text = _layers(network), _layers(text_encoder)
    modules, unused = _group(where, file, network_names(unet, text, getattr(network, "whole", True)))
    layers: Layers = {**unet, **{TEXT_PREFIX + p: layer for p, layer in text.items()}}
    _require_base(where, file, unused, {p: m for p, m in modules.items() if not isinstance(layers[p], Unslotted)}, layers)
    if text_encoder is None:
        _refuse_text(file)
    _require_matches(where, file, modules, unused, allow_unused)
    require_slots(name, (path for path in modules if isinstance(layers[path], Unslotted)))
    done = {
        slot: convert(
            _target(where, slot, layer, slot in unet),
            modules[slot].tensors,
            file.config("unet" if slot in unet else "text_encoder"),
            limits,
        )
        for slot, layer in layers.items()
        if slot in modules
    }
    energy = {slot: one.energy for slot, one in done.items() if one.energy is not None}
    weights = {slot: one.pair for slot, one in done.items()}
    passed = (f"{len(unused)} keys match nothing and are left out: {_listed(unused)}",) if unused else ()
    adapter = FloatAdapter(name, weights, _rank(weights), file.digest, energy, (*_notes(done.values()), *passed))
    _require_energy(name, energy, limits)
    return adapter if limits.max_rank is None else reduced(adapter, limits.max_rank, limits.min_energy)


def _target(where: str, slot: str, layer: nn.Linear | nn.Conv2d, of_unet: bool) -> Target:
    return Target(where, slot, slot if of_unet else slot.removeprefix(TEXT_PREFIX), layer)


def _rank(weights: Mapping[str, LowRank]) -> int:
    return max(pair.rank for pair in weights.values())


def cut(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest pair of a rank, and the share of the update's energy that it keeps."""
    flat = (part.reshape(part.shape[0], -1).astype(np.float64) for part in (pair.b, pair.a))
    found = Product(*flat).cut(rank)
    small = LowRank(found.a.astype(np.float32), found.b.astype(np.float32))
    return shaped(small, (pair.b.shape[0], *pair.a.shape[1:])), found.energy


def reduced(adapter: FloatAdapter, max_rank: int, min_energy: float = RankLimits.min_energy) -> FloatAdapter:
    """The nearest adapter with no module above `max_rank`; modules that are not above it stay as they are.

    Args:
        min_energy: the least share of a module's energy that must be kept, counting what was lost when its kind was converted.

    Raises:
        InputError: some modules keep less; the worst are named.
        UsageError: a limit is out of its range.
    """
    limits = RankLimits(max_rank, min_energy)
    limits.check()
    weights, energy, kept = dict(adapter.weights), dict(adapter.energy), []
    for path, pair in adapter.weights.items():
        if pair.rank <= max_rank:
            continue
        weights[path], share = cut(pair, max_rank)
        energy[path] = energy.get(path, 1.0) * share
        kept.append(share)
    if not kept:
        return adapter
    _require_energy(adapter.name, energy, limits)
    note = (
        f"{len(kept)} of {len(weights)} modules reduced to rank {max_rank} or less, energy kept {min(kept):.4f} at worst, "
        f"{np.mean(kept):.4f} on average"
    )
    return replace(adapter, weights=weights, rank=_rank(weights), energy=energy, notes=(*adapter.notes, note))
