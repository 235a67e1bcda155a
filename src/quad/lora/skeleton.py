"""A bundle's networks as a LoRA file sees them: names and shapes of layers, no weights.

A bundle knows its slots, and by its profile the names of all layers. That is enough to give every key of a LoRA file its meaning, without
the model that the bundle was built from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from quad.core.slots import TEXT_ENCODER, UNET, Slot, SlotTable
from quad.lora.module_names import TEXT_PREFIX


class Unslotted(nn.Linear):
    """A layer of which the name alone is known: it has no slot, so no adapter of the bundle can change it."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False, device="meta")


class Skeleton(nn.Module):
    """A network of slots on the meta device.

    Args:
        slots: path in the network -> slot.
        others: paths of its other layers.
        whole: are all layers among them; without, names that count blocks of the network have no meaning.
    """

    def __init__(self, slots: dict[str, Slot], others: Iterable[str], whole: bool) -> None:
        super().__init__()
        self.whole = whole
        for path in sorted(others):
            if path not in slots:
                _put(self, path, Unslotted())
        for path, slot in slots.items():
            _put(self, path, _layer(slot))


def skeletons(table: SlotTable, layers: Mapping[str, Iterable[str]]) -> tuple[Skeleton, Skeleton | None]:
    """The U-Net and the text encoder, None where that has no slot.

    Args:
        layers: component -> paths of layers that are known beside the slots, as slots spell them; where a component has none, only its
            slots are known.
    """

    def skeleton(component: str, prefix: str) -> Skeleton:
        slots = {slot.path.removeprefix(prefix): slot for slot in table.of(component).slots}
        others = [path.removeprefix(prefix) for path in layers.get(component, ())]
        return Skeleton(slots, others, bool(others))

    return skeleton(UNET, ""), skeleton(TEXT_ENCODER, TEXT_PREFIX) if table.of(TEXT_ENCODER).slots else None


def _layer(slot: Slot) -> nn.Module:
    if slot.kind == "linear":
        return nn.Linear(slot.in_features, slot.out_features, bias=False, device="meta")
    return nn.Conv2d(slot.in_features, slot.out_features, slot.kernel, bias=False, device="meta")


def _put(root: nn.Module, path: str, layer: nn.Module) -> None:
    """The layer at its dotted path, with plain modules on the way."""
    *above, last = path.split(".")
    for name in above:
        inner = root._modules.get(name)
        if inner is None:
            inner = nn.Module()
            root.add_module(name, inner)
        root = inner
    root.add_module(last, layer)
