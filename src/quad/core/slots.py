"""Slots: the attach points of LoRA weights in a graph.

A slot is a Linear or Conv of the network with two runtime inputs, A `(rank, in, *kernel)` (down) and B `(out, rank)` (up):
`y = W x + B (A x)`, the adapter's `alpha / r` already multiplied into B. Source: QUAD Eq. 2-3, method.md section 1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from quad.core.digests import digest

SlotKind = Literal["linear", "conv"]
SlotDtype = Literal["float32", "int16", "int8"]


class Slot(msgspec.Struct, frozen=True):
    """One attach point.

    Args:
        path: module path in the component, e.g. `mid_block.attentions.0.proj_in`.
        kind: linear, or conv (its A has the layer's kernel, stride and padding; its B is 1x1).
        in_features: input channels.
        out_features: output channels.
        rank: rank of the graph inputs; adapters of lower rank are zero-padded, which changes nothing.
        dtype: element type of the two graph inputs.
        kernel: spatial size of A; `(1, 1)` for linear.
        component: the graph that holds the slot.
    """

    path: str
    kind: SlotKind
    in_features: int
    out_features: int
    rank: int
    dtype: SlotDtype = "float32"
    kernel: tuple[int, int] = (1, 1)
    component: str = "unet"

    @property
    def a_name(self) -> str:
        """Graph input name of A."""
        return f"{self.path}.lora_A"

    @property
    def b_name(self) -> str:
        """Graph input name of B."""
        return f"{self.path}.lora_B"

    @property
    def a_shape(self) -> tuple[int, ...]:
        tail = self.kernel if self.kind == "conv" else ()
        return (self.rank, self.in_features, *tail)

    @property
    def b_shape(self) -> tuple[int, ...]:
        tail = (1, 1) if self.kind == "conv" else ()
        return (self.out_features, self.rank, *tail)


class SlotTable(msgspec.Struct, frozen=True):
    """All slots of a graph, in the order of its inputs."""

    slots: tuple[Slot, ...]

    @property
    def digest(self) -> str:
        """Identity of the table: adapters packed for another digest do not fit."""
        return digest(self)

    def by_path(self) -> dict[str, Slot]:
        return {slot.path: slot for slot in self.slots}

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Graph input name to shape, A before B, in slot order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for slot in self.slots:
            shapes[slot.a_name] = slot.a_shape
            shapes[slot.b_name] = slot.b_shape
        return shapes
