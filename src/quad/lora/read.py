"""Adapters as floats: a LoRA file of any dialect and kind becomes two matrices per module, alpha already folded into B."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from quad.core.errors import CompatibilityError, InputError, UnsupportedError, mismatch
from quad.lora.adapter import FloatAdapter, LowRank, ModuleOrigin
from quad.lora.base_names import base_by_names, base_by_width, reads_text
from quad.lora.convert import Converted, convert, latent_only, shaped, widened_inputs
from quad.lora.embeddings import Vectors, bundled_embeddings, embedding_notes, is_lone_embedding, unread_embeddings
from quad.lora.file import LoraFile, open_lora
from quad.lora.keys import EMBEDDING_REMEDY, is_text_key, parse_key
from quad.lora.kinds import beside, kind_of, own_rank
from quad.lora.layout import TEXT_PREFIX, LayerLayout, NetworkLayout, own_place
from quad.lora.low_rank import Product, RankLimits
from quad.lora.module_names import Names, network_names
from quad.lora.quote import listed, quoted
from quad.lora.report.notes import alpha_notes, conversion_notes, error_notes, left_out, require_energy, skipped_notes, without_effect
from quad.lora.report.trained_on import family_notes, strength_notes
from quad.lora.target import TargetLayer
from quad.lora.tensors import Role, StoredTensor

__all__ = ["FloatAdapter", "LowRank", "RankLimits", "read_lora", "reduced"]


@dataclass
class _Module:
    """The tensors that a file has for one module, and the key of each."""

    tensors: dict[Role, StoredTensor] = field(default_factory=dict)
    keys: dict[Role, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """A file for one base.

    Args:
        where: begins every message.
        modules: slot path -> its tensors.
        slots: path -> layer, in the networks' order, of all layers whose shape is known.
        unused: keys that match nothing and would change something.
        words: embeddings that it brings.
        passed_notes: a line for each thing that it holds and that is no update of a layer.
    """

    where: str
    file: LoraFile
    modules: Mapping[str, _Module]
    slots: Mapping[str, LayerLayout]
    unused: list[str]
    words: Mapping[str, Vectors]
    passed_notes: tuple[str, ...]


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
    where: str, file: LoraFile, unused: Iterable[str], modules: Mapping[str, _Module], layers: Mapping[str, LayerLayout | None]
) -> None:
    """Refuse an adapter of another base, with that base's name.

    Args:
        layers: of the base, None where only the name is known.

    Raises:
        InputError: keys, or the width of the text features, are of another base.
    """
    metadata = f" (its metadata says {file.trained_on.name})" if file.trained_on.name else ""
    remedy = "use a LoRA of this base, or build on that base"
    if (base := base_by_names(unused, layers)) is not None:
        raise InputError(mismatch(where, "a LoRA for this base", f"one for {base[0]}, by key '{quoted(base[1])}'{metadata}", remedy))
    for path, module in modules.items():
        down = module.tensors.get("down")
        layer = layers.get(path)
        if layer is None or not reads_text(path) or down is None or down.ndim < 2:
            continue
        width, base_width = int(down.shape[1]), layer.shape[1]
        if width != base_width:
            expected = f"text features of width {base_width}, as this base has"
            raise InputError(mismatch(f"{where}, {path}", expected, f"{down.shape}: {base_by_width(width)}{metadata}", remedy))


def _require_matches(matched: _Matched, allow_unused: bool) -> None:
    where, modules, unused = matched.where, matched.modules, matched.unused
    if modules and (allow_unused or not unused):
        return
    remedy = "pass --allow-unused-keys to leave them out" if modules else "is it for another base model?"
    if unused and all(map(beside, unused)):
        remedy = "pass --allow-unused-keys to leave them out" if modules else "there is nothing that a slot could carry"
        kinds = " and ".join(dict.fromkeys(map(beside, unused)))
        raise InputError(mismatch(where, "updates of weights alone", f"{len(unused)} tensors of {kinds}: {listed(unused)}", remedy))
    if not modules and is_lone_embedding({key: matched.file.tensors[key].shape for key in unused}):
        raise InputError(mismatch(where, "a LoRA", f"an embedding of '{quoted(unused[0])}' alone", EMBEDDING_REMEDY))
    problem = f"{len(unused)} of {len(matched.file.tensors)} match nothing: {listed(unused)}" if unused else "no tensors at all"
    raise InputError(mismatch(where, "every key to match a Linear or Conv2d of the model", problem, remedy))


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
    matched = _matched(name, path, unet, text_encoder)
    _require_matches(matched, allow_unused)
    require_slots(name, (path for path in matched.modules if path not in matched.slots))
    adapter, enough = _adapter(name, matched, limits)
    require_energy(name, adapter.energy, limits, enough)
    if limits.max_rank is not None:
        enough = max(enough, adapter.rank)
        adapter = reduced(adapter, limits.max_rank, limits.min_energy)
    return replace(adapter, notes=(*adapter.notes, *error_notes(adapter, enough)))


def _matched(name: str, path: Path, unet: NetworkLayout, text_encoder: NetworkLayout | None) -> _Matched:
    """A file opened, and its tensors given to the layers that they are for.

    Raises:
        InputError, UnsupportedError: as `read_lora`, apart from what single tensors hold.
    """
    opened = open_lora(path)
    where, file = f"adapter {name!r} ({opened.path.name})", opened.without_embeddings()
    words = bundled_embeddings(where, opened.tensors)
    if words and not file.tensors:
        raise InputError(mismatch(where, "a LoRA", f"embeddings alone: {listed(words)}", EMBEDDING_REMEDY))
    text_layers = {} if text_encoder is None else text_encoder.layers
    text_skipped = frozenset[str]() if text_encoder is None else text_encoder.skipped
    modules, unused = _group(where, file, network_names(unet.layers, [*text_layers, *text_skipped], unet.complete))
    skipped = [path for path in modules if path.removeprefix(TEXT_PREFIX) in text_skipped]
    layers = {**unet.layers, **{TEXT_PREFIX + path: layer for path, layer in text_layers.items()}}
    slots = {path: layer for path, layer in layers.items() if layer is not None}
    _require_base(where, file, unused, modules, layers)
    if text_encoder is None:
        _refuse_text(file)
    return _Matched(
        where=where,
        file=file,
        modules={path: module for path, module in modules.items() if path not in skipped},
        slots=slots,
        unused=[key for key in unused if not without_effect(file.tensors, key)],
        words=words,
        passed_notes=(*skipped_notes(skipped), *embedding_notes(words, unread_embeddings(opened.tensors))),
    )


def _adapter(name: str, matched: _Matched, limits: RankLimits) -> tuple[FloatAdapter, int]:
    """The two matrices of each module, and the rank with which each would keep all that a conversion keeps."""
    where, file, modules = matched.where, matched.file, matched.modules
    converted = {
        path: _convert_module(where, path, layer, modules[path], file, limits) for path, layer in matched.slots.items() if path in modules
    }
    weights = {path: module.pair for path, module in converted.items()}
    origins = {path: _origin(path, modules[path], file) for path in converted}
    adapter = FloatAdapter(
        name=name,
        weights=weights,
        rank=_rank(weights),
        digest=file.digest,
        energy={path: module.energy for path, module in converted.items() if module.energy is not None},
        notes=(
            *family_notes(file.trained_on, (layer.shape[1] for path, layer in matched.slots.items() if reads_text(path))),
            *strength_notes(file.trained_on),
            *alpha_notes(origins.values()),
            *conversion_notes(converted.values()),
            *left_out(file.tensors, matched.unused),
            *matched.passed_notes,
        ),
        embeddings=matched.words,
        trained_on=file.trained_on,
        origins=origins,
        own_defaults=file.defaults,
    )
    return adapter, max(0, *(module.enough for module in converted.values()))


def _origin(path: str, module: _Module, file: LoraFile) -> ModuleOrigin:
    """A module that was converted, as its file has it; alpha is the file's own, or what the config's scale comes to."""
    rank = own_rank({role: tensor.shape for role, tensor in module.tensors.items()})
    component, own_path = own_place(path)
    config, stored = file.config(component), module.tensors.get("alpha")
    alpha = None if stored is None else float(stored.values().reshape(-1)[0])
    if alpha is None and config.present:
        alpha = config.rule.scale(own_path, rank, check=False) * rank
    return ModuleOrigin(kind=kind_of(module.tensors), rank=rank, alpha=alpha, tensors=len(module.tensors))


def _convert_module(where: str, path: str, layer: LayerLayout, module: _Module, file: LoraFile, limits: RankLimits) -> Converted:
    """The matrices of one module; the text encoder's paths have a prefix that its configs do not know."""
    component, own_path = own_place(path)
    config = file.config(component)
    target = TargetLayer(where=where, path=path, own_path=own_path, layer=layer)
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
    require_energy(adapter.name, energy, limits, adapter.rank)
    note = (
        f"{len(shares)} of {len(weights)} modules reduced to rank {max_rank} or less, energy kept {min(shares):.4f} at worst, "
        f"{np.mean(shares):.4f} on average"
    )
    return replace(adapter, weights=weights, rank=_rank(weights), energy=energy, notes=(*adapter.notes, note))
