"""The slots of a bundle's networks: the union of what its adapters reach, and where the base is corrected."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec
from torch import nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.slots import NORMALISED, SEARCHED, TEXT_ENCODER, UNET, Slot, SlotMode, SlotTable
from quad.lora.read import FloatAdapter


def _new_slot(path: str, layer: nn.Module, rank: int, component: str) -> Slot:
    if isinstance(layer, nn.Linear):
        return Slot(
            path=path, kind="linear", in_features=layer.in_features, out_features=layer.out_features, rank=rank, component=component
        )
    if not isinstance(layer, nn.Conv2d):
        raise InputError(
            mismatch(f"slot {path!r}", "a Linear or Conv2d of the network", type(layer).__name__, "read the LoRA for this network")
        )
    if layer.groups != 1:
        raise UnsupportedError(
            mismatch(f"slot {path!r}", "a convolution without groups", f"groups={layer.groups}", "leave this module out")
        )
    height, width = layer.kernel_size
    return Slot(
        path=path,
        kind="conv",
        in_features=layer.in_channels,
        out_features=layer.out_channels,
        rank=rank,
        kernel=(int(height), int(width)),
        component=component,
    )


def new_table(networks: Mapping[str, nn.Module], adapters: Sequence[FloatAdapter], max_rank: int | None = None, room: int = 1,
              mode: SlotMode = SEARCHED) -> SlotTable:  # fmt: skip
    """The union of the adapters' targets, in the order of components and then of modules.

    Args:
        networks: component -> network; no two of them have a path in common.
        max_rank: rank of every slot, room for later adapters, and more only where an adapter has more; None gives each slot what `room`
            says.
        room: how many of `adapters` at once have their ranks side by side in a slot: it gets the sum of the largest ones there.

    Raises:
        InputError: a target is no layer of the networks.
        UnsupportedError: a target is a grouped convolution.
    """
    layers = {path: (layer, component) for component, network in networks.items() for path, layer in network.named_modules()}
    ranks: dict[str, list[int]] = {}
    for adapter in adapters:
        if unknown := [path for path in adapter.weights if path not in layers]:
            where, expected = f"adapter {adapter.name!r}, slot {unknown[0]!r}", f"a module of {' or '.join(networks)}"
            raise InputError(mismatch(where, expected, "none of that name", "read the LoRA for this network"))
        for path, pair in adapter.weights.items():
            ranks.setdefault(path, []).append(pair.rank)
    sums = {path: max(max_rank, *of_slot) if max_rank else sum(sorted(of_slot, reverse=True)[:room]) for path, of_slot in ranks.items()}
    slots = tuple(_new_slot(path, layer, sums[path], component) for path, (layer, component) in layers.items() if path in sums)
    return SlotTable(slots) if mode == SEARCHED else SlotTable(slots, NORMALISED)


def corrected_table(table: SlotTable, component: str, network: nn.Module, paths: Collection[str], rank: int) -> SlotTable:
    """The table with rank channels for the base's correction behind those of adapters; a layer without a slot gets one of them alone.

    Args:
        network: of the component; other components keep their slots.
        paths: layers of it that are corrected.
        rank: of each correction; a layer of fewer inputs or outputs takes as many.
    """
    layers, known = dict(network.named_modules()), table.of(component).by_path()
    slots: list[Slot] = []
    for path, layer in layers.items():
        slot = known.get(path)
        if path in paths:
            new = _new_slot(path, layer, rank, component) if slot is None else slot
            most = min(rank, new.out_features, new.in_features * math.prod(new.kernel))
            before = 0 if slot is None else slot.rank
            slots.append(msgspec.structs.replace(new, rank=before + most, correction=most))
        elif slot is not None:
            slots.append(slot)
    places = {name: table.of(name).slots for name in table.components} | {component: tuple(slots)}
    order = [name for name in (UNET, TEXT_ENCODER) if name in places]
    return table.with_slots(slot for name in order for slot in places[name])
