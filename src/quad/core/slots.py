"""Slots: the attach points of LoRA weights in a graph.

A slot is a Linear or Conv of the network with two runtime inputs, A `(rank, in, *kernel)` (down) and B `(out, rank)` (up):
`y = W x + B (A x)`, the adapter's `alpha / r` already multiplied into B. Source: QUAD Eq. 2-3, docs/method.md section 1.

Normalised slots have a third part, a float for each rank channel: `y = W x + B diag(s) (A x)`. The rows of A and the columns of B are
brought to one size, so that any adapter fits their encodings, and s holds by how much, with `alpha / r` and the adapter's weight in it. The
s of all slots of a component are one graph input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from quad.core.digests import digest
from quad.core.tensor_names import lora_a_name, lora_b_name, lora_scale_name, lora_scales_name

SlotKind = Literal["linear", "conv"]
Features = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Side = Annotated[int, msgspec.Meta(ge=1, le=64)]
SlotDtype = Literal["float32", "int16", "int8"]
SlotMode = Literal["searched", "normalised"]
SEARCHED: Final = "searched"  # the ranges of A and B are those of the adapters at hand
NORMALISED: Final = "normalised"
UNET: Final = "unet"  # the components that may have slots
TEXT_ENCODER: Final = "text_encoder"
TEXT_ENCODER_2: Final = "text_encoder_2"  # in LoRA files a model of its own; here a part of the text encoder


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One attach point.

    Args:
        path: module path in the component, e.g. `mid_block.attentions.0.proj_in`; those of the text encoder begin with `text_encoder.`,
            so that no two components share one.
        kind: linear, or conv (its A has the layer's kernel, stride and padding; its B is 1x1).
        in_features: input channels.
        out_features: output channels.
        rank: rank of the graph inputs; adapters of lower rank are zero-padded, which changes nothing.
        dtype: element type of the two graph inputs.
        kernel: spatial size of A; `(1, 1)` for linear.
        component: the graph that holds the slot.
        largest: magnitude that integers of its tensors may have, where the target counts fewer than the type has; UNSET for the type's own.
        correction: how many of the rank channels, the last ones, the base's own correction has; UNSET for none. See `quad.core.correction`.
    """

    path: str
    kind: SlotKind
    in_features: Features
    out_features: Features
    rank: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    dtype: SlotDtype = "float32"
    kernel: tuple[Side, Side] = (1, 1)
    component: str = UNET
    largest: Annotated[int, msgspec.Meta(ge=1, le=32767)] | msgspec.UnsetType = msgspec.UNSET
    correction: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def adapter_rank(self) -> int:
        """Rank channels that adapters have, the first ones; 0 where only the base's correction has any."""
        return self.rank - (0 if self.correction is msgspec.UNSET else self.correction)

    @property
    def channel_bytes(self) -> int:
        """Bytes of one rank channel: a row of A and a column of B."""
        inputs = self.in_features * self.kernel[0] * self.kernel[1]
        return (inputs + self.out_features) * {"float32": 4, "int16": 2, "int8": 1}[self.dtype]

    @property
    def a_name(self) -> str:
        """Graph input name of A."""
        return lora_a_name(self.path)

    @property
    def b_name(self) -> str:
        """Graph input name of B."""
        return lora_b_name(self.path)

    @property
    def scale_name(self) -> str:
        """Name of its scales in an adapter's file, `(rank,)` float32; of normalised slots."""
        return lora_scale_name(self.path)

    @property
    def a_shape(self) -> tuple[int, ...]:
        tail = self.kernel if self.kind == "conv" else ()
        return (self.rank, self.in_features, *tail)

    @property
    def b_shape(self) -> tuple[int, ...]:
        tail = (1, 1) if self.kind == "conv" else ()
        return (self.out_features, self.rank, *tail)


class SlotTable(msgspec.Struct, frozen=True, cache_hash=True):
    """All slots of a bundle, each graph's in the order of its inputs: first the U-Net's, then the text encoder's.

    Args:
        mode: UNSET for searched slots, whose tables keep the digest that they had before there was another mode.
    """

    slots: tuple[Slot, ...]
    mode: Literal["normalised"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def digest(self) -> str:
        """Identity of the table: adapters packed for another digest do not fit."""
        return digest(self)

    @property
    def normalised(self) -> bool:
        """Do its graphs read scales beside A and B."""
        return self.mode == NORMALISED

    @property
    def of_adapters(self) -> SlotTable:
        """The slots that an adapter may have something for."""
        return self.with_slots(slot for slot in self.slots if slot.adapter_rank)

    @property
    def corrected(self) -> bool:
        """Has a slot a correction of the base."""
        return any(slot.correction is not msgspec.UNSET for slot in self.slots)

    @property
    def components(self) -> tuple[str, ...]:
        """The graphs that have slots, in order."""
        return tuple(dict.fromkeys(slot.component for slot in self.slots))

    def of(self, component: str) -> SlotTable:
        """The slots of one graph."""
        return self.with_slots(slot for slot in self.slots if slot.component == component)

    def with_slots(self, slots: Iterable[Slot]) -> SlotTable:
        """A table of these slots in the same mode."""
        return SlotTable(tuple(slots), self.mode)

    def by_path(self) -> dict[str, Slot]:
        """All slots, those of the base's correction alone too."""
        return {slot.path: slot for slot in self.slots}

    def scale_inputs(self) -> dict[str, tuple[Slot, ...]]:
        """Graph input of scales -> the slots whose scales it holds, in order; empty where slots are not normalised.

        The scales of a slot of rank r take r places, those of a smaller adapter the first of them.
        """
        members: dict[str, list[Slot]] = {}
        for slot in self.slots if self.normalised else ():
            members.setdefault(slot.component, []).append(slot)
        return {lora_scales_name(component): tuple(slots) for component, slots in members.items()}

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Graph input name to shape: A before B, in slot order, then the scales of each graph.

        A and B have the slots' element type, scales are float32, or as the profile says where it has an encoding of that name.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for slot in self.slots:
            shapes[slot.a_name] = slot.a_shape
            shapes[slot.b_name] = slot.b_shape
        for name, slots in self.scale_inputs().items():
            shapes[name] = (sum(slot.rank for slot in slots),)
        return shapes
