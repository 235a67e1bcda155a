"""Adapters as floats: a LoRA file of any dialect and kind becomes two matrices per module, alpha already folded into B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from quad.core.errors import CompatibilityError, InputError, UnsupportedError, mismatch
from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.base_names import base_by_names, base_by_width, reads_text
from quad.lora.convert import Converted, convert, latent_only, shaped, widened_inputs
from quad.lora.embeddings import bundled_embeddings, embedding_notes, unread_embeddings
from quad.lora.file import LoraFile, open_lora
from quad.lora.keys import is_text_key, parse_key, refuse_other_kinds
from quad.lora.kinds import beside
from quad.lora.layout import TEXT_PREFIX, LayerLayout, NetworkLayout
from quad.lora.low_rank import Product, RankLimits
from quad.lora.module_names import Names, network_names
from quad.lora.quote import listed, quoted
from quad.lora.target import TargetLayer
from quad.lora.tensors import Role, StoredTensor

__all__ = ["FloatAdapter", "LowRank", "RankLimits", "read_lora", "reduced"]


@dataclass
class _Module:
    """The tensors that a file has for one module, and the key of each."""

    tensors: dict[Role, StoredTensor] = field(default_factory=dict)
    keys: dict[Role, str] = field(default_factory=dict)


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
                    where,
                    f"one {key.role} for {path!r}",
                    f"'{quoted(module.keys[key.role])}' and '{quoted(name)}'",
                    "leave one of them out",
                )
            )
        module.tensors[key.role], module.keys[key.role] = tensor, name
    return modules, unused


def _refuse_text(file: LoraFile) -> None:
    for name in file.tensors:
        if (key := parse_key(name)) is not None and is_text_key(key):
            raise UnsupportedError(
                mismatch(
                    f"key '{quoted(name)}'", "U-Net LoRA keys", "text-encoder LoRA", "strip the text-encoder keys, or give the text encoder"
                )
            )


def _require_base(
    where: str, file: LoraFile, unused: Iterable[str], modules: Mapping[str, _Module], slots: Mapping[str, LayerLayout]
) -> None:
    """Refuse an adapter of another base, with that base's name.

    Args:
        slots: the layers whose shape is known.

    Raises:
        InputError: keys, or the width of the text features, are of another base.
    """
    metadata = f" (its metadata says {file.trained_on})" if file.trained_on else ""
    remedy = "use a LoRA of this base, or build on that base"
    if (base := base_by_names(unused)) is not None:
        raise InputError(mismatch(where, "a LoRA for this base", f"one for {base[0]}, by key '{quoted(base[1])}'{metadata}", remedy))
    for path, module in modules.items():
        down = module.tensors.get("down")
        if path not in slots or not reads_text(path) or down is None or down.ndim < 2:
            continue
        width, base_width = int(down.shape[1]), slots[path].shape[1]
        if width != base_width:
            expected = f"text features of width {base_width}, as this base has"
            raise InputError(mismatch(f"{where}, {path}", expected, f"{down.shape}: {base_by_width(width)}{metadata}", remedy))


def _require_matches(where: str, file: LoraFile, modules: Mapping[str, _Module], unused: list[str], allow_unused: bool) -> None:
    if modules and (allow_unused or not unused):
        return
    remedy = "pass --allow-unused-keys to leave them out" if modules else "is it for another base model?"
    if unused and all(map(beside, unused)):
        remedy = "pass --allow-unused-keys to leave them out" if modules else "there is nothing that a slot could carry"
        kinds = " and ".join(dict.fromkeys(map(beside, unused)))
        raise InputError(mismatch(where, "updates of weights alone", f"{len(unused)} tensors of {kinds}: {listed(unused)}", remedy))
    problem = f"{len(unused)} of {len(file.tensors)} match nothing: {listed(unused)}" if unused else "no tensors at all"
    raise InputError(mismatch(where, "every key to match a Linear or Conv2d of the model", problem, remedy))


def _without_effect(file: LoraFile, key: str) -> bool:
    """Whether a key that matches no layer would change nothing: zeros, or the places of a sparse bias, whose values count."""
    return key.endswith((".bias_indices", ".bias_size")) or not file.tensors[key].values().any()


def _left_out(file: LoraFile, unused: list[str]) -> tuple[str, ...]:
    """A line for each kind of tensors that are left out, with how large they are."""
    kinds: dict[str, list[str]] = {}
    for key in unused:
        kinds.setdefault(beside(key) or "keys that match nothing", []).append(key)

    def largest(keys: list[str]) -> float:
        return max(float(np.abs(file.tensors[key].values()).max()) for key in keys)

    return tuple(
        f"{len(keys)} {'' if kind.startswith('keys') else 'tensors of '}{kind} left out, largest value {largest(keys):.3g}: {listed(keys)}"
        for kind, keys in kinds.items()
    )


def _skipped_note(paths: Collection[str]) -> tuple[str, ...]:
    """A line about modules of layers that a shorter text encoder leaves out."""
    return (f"{len(paths)} modules left out, of text encoder layers that clip skip leaves out: {listed(paths)}",) if paths else ()


def require_slots(name: str, outside: Iterable[str]) -> None:
    """Refuse an adapter with targets that have no slot in a bundle.

    Raises:
        CompatibilityError: names them.
    """
    if missing := sorted(outside):
        remedy = "build the bundle again with this adapter, or train it on fewer modules"
        raise CompatibilityError(
            mismatch(f"adapter {name!r}", "targets among the bundle's slots", f"{listed(missing)} without one", remedy)
        )


def _notes(converted: Collection[Converted]) -> tuple[str, ...]:
    """A line for each kind that was converted."""
    energies: dict[str, list[float]] = {}
    for module in converted:
        if module.energy is not None:
            energies.setdefault(module.kind, []).append(module.energy)
    counts = Counter({kind: len(shares) for kind, shares in energies.items()})
    narrow = tuple(module.note for module in converted if module.note)
    return narrow + tuple(
        f"{count} modules of {kind} converted, energy kept {min(energies[kind]):.4f} at worst, {np.mean(energies[kind]):.4f} on average"
        for kind, count in counts.items()
    )


def _require_energy(name: str, energy: Mapping[str, float], limits: RankLimits) -> None:
    low = sorted((share, path) for path, share in energy.items() if share < limits.min_energy)
    if low:
        worst = listed(f"{path} {share:.3f}" for share, path in low)
        raise InputError(
            mismatch(f"adapter {name!r}", f"{limits.min_energy:g} of each module's energy at its rank", worst,
                     "raise --max-rank, or lower --min-energy")
        )  # fmt: skip


def read_lora(
    name: str, path: Path, unet: NetworkLayout, allow_unused: bool = False, *, text_encoder: NetworkLayout | None = None,
    limits: RankLimits | None = None,
) -> FloatAdapter:  # fmt: skip
    """Read a LoRA file (or PEFT / diffusers directory) for the networks of one base.

    Args:
        name: the adapter's name.
        unet: the U-Net it was trained on; its layers' paths give the keys their meaning.
        allow_unused: pass over keys that match nothing (`--allow-unused-keys`), as long as some match.
        text_encoder: its modules get paths `text_encoder.<path>`. None refuses LoRA of a text encoder.
        limits: the largest rank, and how much of an update may be lost to it.

    Raises:
        InputError: missing, pickled or truncated file, another base's, keys that match nothing or the same module twice, wrong shapes, rank
        0, NaN or Inf, or too little energy kept.
        UnsupportedError: a kind that is not read, or text-encoder LoRA without `text_encoder`.
        CompatibilityError: the layout is a bundle's, and a target has no slot.
    """
    limits = limits or RankLimits()
    limits.check()
    opened = open_lora(path)
    where, file = f"adapter {name!r} ({opened.path.name})", opened.without_embeddings()
    words, unread = bundled_embeddings(where, opened.tensors), unread_embeddings(opened.tensors)
    if words and not file.tensors:
        raise InputError(mismatch(where, "a LoRA", f"embeddings alone: {listed(words)}", "it is a textual inversion, not an adapter"))
    refuse_other_kinds(file.tensors)
    text_layers = {} if text_encoder is None else text_encoder.layers
    text_skipped = frozenset[str]() if text_encoder is None else text_encoder.skipped
    modules, unused = _group(where, file, network_names(unet.layers, [*text_layers, *text_skipped], unet.complete))
    skipped = [path for path in modules if path.removeprefix(TEXT_PREFIX) in text_skipped]
    modules = {path: module for path, module in modules.items() if path not in skipped}
    layers = {**unet.layers, **{TEXT_PREFIX + path: layer for path, layer in text_layers.items()}}
    slots = {path: layer for path, layer in layers.items() if layer is not None}
    _require_base(where, file, unused, modules, slots)
    if text_encoder is None:
        _refuse_text(file)
    unused = [key for key in unused if not _without_effect(file, key)]
    _require_matches(where, file, modules, unused, allow_unused)
    require_slots(name, (path for path in modules if path not in slots))
    converted = {path: _convert_module(where, path, layer, modules[path], file, limits) for path, layer in slots.items() if path in modules}
    weights = {path: module.pair for path, module in converted.items()}
    adapter = FloatAdapter(
        name=name,
        weights=weights,
        rank=_rank(weights),
        digest=file.digest,
        energy={path: module.energy for path, module in converted.items() if module.energy is not None},
        notes=(*_notes(converted.values()), *_left_out(file, unused), *_skipped_note(skipped), *embedding_notes(words, unread)),
        embeddings=words,
    )
    _require_energy(name, adapter.energy, limits)
    return adapter if limits.max_rank is None else reduced(adapter, limits.max_rank, limits.min_energy)


def _convert_module(where: str, path: str, layer: LayerLayout, module: _Module, file: LoraFile, limits: RankLimits) -> Converted:
    """The matrices of one module; the text encoder's paths have a prefix that its configs do not know."""
    config = file.config(TEXT_ENCODER if path.startswith(TEXT_PREFIX) else UNET)
    target = TargetLayer(where=where, path=path, own_path=path.removeprefix(TEXT_PREFIX), layer=layer)
    try:
        return convert(target, module.tensors, config, limits)
    except InputError:
        if (narrow := latent_only(path, layer)) is None:
            raise
        try:
            converted = convert(replace(target, layer=narrow), module.tensors, config, limits)
        except InputError:
            narrow = None
        if narrow is None:
            raise  # the message of the whole layer
    return widened_inputs(converted, layer)


def _rank(weights: Mapping[str, LowRank]) -> int:
    return max(pair.rank for pair in weights.values())


def cut(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest pair of a rank, and the share of the update's energy that it keeps."""
    flat = (part.reshape(part.shape[0], -1).astype(np.float64) for part in (pair.b, pair.a))
    nearest = Product(*flat).cut(rank)
    small = LowRank(nearest.a.astype(np.float32), nearest.b.astype(np.float32))
    return shaped(small, (pair.b.shape[0], *pair.a.shape[1:])), nearest.energy


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
    weights, energy, shares = dict(adapter.weights), dict(adapter.energy), []
    for path, pair in adapter.weights.items():
        if pair.rank <= max_rank:
            continue
        weights[path], share = cut(pair, max_rank)
        energy[path] = energy.get(path, 1.0) * share
        shares.append(share)
    if not shares:
        return adapter
    _require_energy(adapter.name, energy, limits)
    note = (
        f"{len(shares)} of {len(weights)} modules reduced to rank {max_rank} or less, energy kept {min(shares):.4f} at worst, "
        f"{np.mean(shares):.4f} on average"
    )
    return replace(adapter, weights=weights, rank=_rank(weights), energy=energy, notes=(*adapter.notes, note))
