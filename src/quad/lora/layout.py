"""The networks that an adapter changes, as a description: paths and weight shapes of their layers.

That is enough to give every key of a LoRA file its meaning. A model describes its modules (`quad.model.adapters`), and a bundle describes
itself by its slots and, by its profile, the names of all layers: no model is needed to read a LoRA for a bundle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.families import TEXT_PARTS, Component
from quad.core.slots import TEXT_ENCODER, UNET, Slot, SlotTable

TEXT_PREFIX = f"{TEXT_ENCODER}."  # of its slots' paths: no two components share one
_TEXT_BLOCK = re.compile(r"((?:.+\.)?encoder\.layers\.)(\d+)(\..+)")


@dataclass(frozen=True, eq=False)
class LayerLayout:
    """A linear layer or a convolution.

    Args:
        shape: of its weight, `(out, in)` or `(out, in, kernel height, kernel width)`.
        weight: fetches the weight, of that shape; None where the shape alone is known.
    """

    shape: tuple[int, ...]
    weight: Callable[[], NDArray[Any]] | None = None

    @property
    def is_convolution(self) -> bool:
        return len(self.shape) > 2

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Input channels times the kernel: the columns of the weight as a matrix."""
        return int(np.prod(self.shape[1:]))

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]


@dataclass(frozen=True, eq=False)
class NetworkLayout:
    """A network as an adapter sees it.

    Args:
        layers: path in the network -> layer, in the network's own order; None for a layer of which the name alone is known: it has no
            slot, so no adapter of the bundle can change it.
        complete: all layers of the network are among them; without, names that count blocks of the network have no meaning.
        skipped: paths of layers that the model has and this network leaves out (clip skip): what an adapter has for them does nothing.
    """

    layers: Mapping[str, LayerLayout | None]
    complete: bool = True
    skipped: frozenset[str] = frozenset()


def text_part(path: str) -> tuple[Component, str]:
    """The model that LoRA files call a module's of a text encoder, and its path there.

    Args:
        path: in the text encoder, of which it may be a part.
    """
    for part, component in TEXT_PARTS.items():
        if path.startswith(part):
            return component, path.removeprefix(part)
    return TEXT_ENCODER, path


def own_place(path: str) -> tuple[Component, str]:
    """The model of a slot, as LoRA files call it, and the module's path there."""
    return text_part(path.removeprefix(TEXT_PREFIX)) if path.startswith(TEXT_PREFIX) else (UNET, path)


def with_skipped(layout: NetworkLayout, count: int) -> NetworkLayout:
    """A text encoder's layout that knows of so many blocks behind the last one of each part, which are like that."""
    blocks = [match for path in layout.layers if (match := _TEXT_BLOCK.match(path))]
    last = {block[1]: max(int(other[2]) for other in blocks if other[1] == block[1]) for block in blocks} if count else {}
    skipped = frozenset(
        f"{block[1]}{last[block[1]] + further}{block[3]}"
        for block in blocks
        if last and int(block[2]) == last[block[1]]
        for further in range(1, count + 1)
    )
    return replace(layout, skipped=skipped) if skipped else layout


def bundle_layouts(table: SlotTable, layers: Mapping[str, Iterable[str]]) -> tuple[NetworkLayout, NetworkLayout | None]:
    """A bundle's U-Net and its text encoder, None where that has no slot.

    Args:
        layers: component -> paths of layers that are known beside the slots, as slots spell them; where a component has none, only its
            slots are known.
    """
    text_encoder = _of_slots(table.of(TEXT_ENCODER), layers.get(TEXT_ENCODER, ()), TEXT_PREFIX) if table.of(TEXT_ENCODER).slots else None
    return _of_slots(table.of(UNET), layers.get(UNET, ()), ""), text_encoder


def _of_slots(table: SlotTable, named: Iterable[str], prefix: str) -> NetworkLayout:
    slotted = {slot.path.removeprefix(prefix): _layer(slot) for slot in table.slots}
    names = sorted(path.removeprefix(prefix) for path in named)
    paths = [*(path for path in names if path not in slotted), *slotted]
    return NetworkLayout({path: slotted.get(path) for path in _depth_first(paths)}, complete=bool(names))


def _layer(slot: Slot) -> LayerLayout:
    return LayerLayout((slot.out_features, slot.in_features, *(slot.kernel if slot.kind == "conv" else ())))


def _depth_first(paths: Iterable[str]) -> list[str]:
    """The paths as a network lists its modules: what lies in one module stands together, in the order in which it first came."""
    order: dict[tuple[str, ...], int] = {}
    for path in paths:
        for prefix in _prefixes(path):
            order.setdefault(prefix, len(order))
    return sorted(paths, key=lambda path: [order[prefix] for prefix in _prefixes(path)])


def _prefixes(path: str) -> list[tuple[str, ...]]:
    parts = tuple(path.split("."))
    return [parts[:length] for length in range(1, len(parts) + 1)]
