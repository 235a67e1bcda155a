"""The slots of a bundle's networks: the union of what its adapters reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.slots import Slot, SlotTable
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


def new_table(networks: Mapping[str, nn.Module], adapters: Sequence[FloatAdapter], max_rank: int | None = None) -> SlotTable:
    """The union of the adapters' targets, in the order of components and then of modules.

    Args:
        networks: component -> network; no two of them have a path in common.
        max_rank: rank of every slot, room for later adapters; None gives each slot the largest rank it has among `adapters`.

    Raises:
        InputError: an adapter's rank is over `max_rank`, or a target is no layer of the networks.
        UnsupportedError: a target is a grouped convolution.
    """
    layers = {path: (layer, component) for component, network in networks.items() for path, layer in network.named_modules()}
    ranks: dict[str, int] = {}
    for adapter in adapters:
        if max_rank is not None and adapter.rank > max_rank:
            raise InputError(
                mismatch(f"adapter {adapter.name!r}", f"rank <= {max_rank} (--max-rank)", f"rank {adapter.rank}", "raise --max-rank")
            )
        if unknown := [path for path in adapter.weights if path not in layers]:
            where, expected = f"adapter {adapter.name!r}, slot {unknown[0]!r}", f"a module of {' or '.join(networks)}"
            raise InputError(mismatch(where, expected, "none of that name", "read the LoRA for this network"))
        for path, pair in adapter.weights.items():
            ranks[path] = max(ranks.get(path, 1), max_rank or pair.rank)
    return SlotTable(tuple(_new_slot(path, layer, ranks[path], component) for path, (layer, component) in layers.items() if path in ranks))
