"""The LoRA-as-input network: `y = W x + B (A x)` with A and B given at every call. Source: QUAD Eq. 2-3, method.md section 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quad.core.errors import CompatibilityError, InputError, UnsupportedError, mismatch
from quad.core.slots import Slot, SlotTable
from quad.model.lora import FloatAdapter, LowRank
from quad.model.sites import Site, SitedConv2d, SitedLinear, add_sites, collect_sites, share_copy


class SlotFeed:
    """What the slots of a network read during one call: graph input name to tensor. Empty means no LoRA branch at all."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}


class SlottedLinear(SitedLinear):
    """A Linear with a slot; W and A read the same Site, `A x` passes `<path>.lora_mid`."""

    def __init__(self, layer: nn.Linear, slot: Slot, feed: SlotFeed) -> None:
        super().__init__(layer, slot.path)
        self.slot, self.feed = slot, feed
        self.mid_site = Site(f"{slot.path}.lora_mid")

    def forward(self, input: Tensor) -> Tensor:
        x = self.site(input)
        y = functional.linear(x, self.weight, self.bias)
        if not self.feed.tensors:
            return y
        down, up = self.feed.tensors[self.slot.a_name], self.feed.tensors[self.slot.b_name]
        return y + functional.linear(self.mid_site(functional.linear(x, down)), up)


class SlottedConv2d(SitedConv2d):
    """A Conv2d with a slot: A has the layer's kernel, stride, padding and dilation, B is 1x1."""

    def __init__(self, layer: nn.Conv2d, slot: Slot, feed: SlotFeed) -> None:
        super().__init__(layer, slot.path)
        self.slot, self.feed = slot, feed
        self.mid_site = Site(f"{slot.path}.lora_mid")

    def forward(self, input: Tensor) -> Tensor:
        x = self.site(input)
        y: Tensor = self._conv_forward(x, self.weight, self.bias)
        if not self.feed.tensors:
            return y
        down, up = self.feed.tensors[self.slot.a_name], self.feed.tensors[self.slot.b_name]
        return y + functional.conv2d(self.mid_site(self._conv_forward(x, down, None)), up)


class SlottedNetwork(nn.Module):
    """A U-Net with sites and slots; one call takes the adapter's tensors beside the picture's.

    Args:
        unet: diffusers U-Net whose slotted layers read `feed`.
        table: its slots, in module order.
    """

    def __init__(self, unet: nn.Module, table: SlotTable, feed: SlotFeed) -> None:
        super().__init__()
        self.unet, self.table, self._feed = unet, table, feed
        self.sites: dict[str, Site] = collect_sites(unet)
        self.train(unet.training)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, slots: Mapping[str, Tensor] | None = None) -> Tensor:
        """The raw network output `(batch, 4, h, w)`.

        Args:
            sample: `(batch, channels, h, w)`.
            timestep: `(1,)` or `(batch,)`.
            encoder_hidden_states: `(batch, tokens, hidden)`.
            slots: every A and B by graph input name; empty or None for the base without LoRA branches.

        Raises:
            CompatibilityError: a slot's input is not there.
        """
        if slots and (missing := [name for name in self.table.input_shapes() if name not in slots]):
            raise CompatibilityError(mismatch("slots", f"{2 * len(self.table.slots)} inputs", f"no {missing[0]!r}", "use slot_inputs()"))
        self._feed.tensors = slots or {}
        try:
            output: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
            return output
        finally:
            # Nothing of an adapter outlives its call: A -> B -> A leaves no trace.
            self._feed.tensors = {}


def _new_slot(path: str, layer: nn.Module, rank: int) -> Slot:
    if isinstance(layer, nn.Linear):
        return Slot(path, "linear", layer.in_features, layer.out_features, rank)
    if not isinstance(layer, nn.Conv2d):
        raise InputError(
            mismatch(f"slot {path!r}", "a Linear or Conv2d of the network", type(layer).__name__, "read the LoRA for this network")
        )
    if layer.groups != 1:
        raise UnsupportedError(
            mismatch(f"slot {path!r}", "a convolution without groups", f"groups={layer.groups}", "leave this module out")
        )
    height, width = layer.kernel_size
    return Slot(path, "conv", layer.in_channels, layer.out_channels, rank, kernel=(int(height), int(width)))


def new_table(unet: nn.Module, adapters: Sequence[FloatAdapter], max_rank: int | None = None) -> SlotTable:
    """The union of the adapters' targets, in module order.

    Args:
        max_rank: rank of every slot, room for later adapters; None gives each slot the largest rank it has among `adapters`.

    Raises:
        InputError: an adapter's rank is over `max_rank`, or a target is no layer of the network.
        UnsupportedError: a target is a grouped convolution.
    """
    ranks: dict[str, int] = {}
    for adapter in adapters:
        if max_rank is not None and adapter.rank > max_rank:
            raise InputError(
                mismatch(f"adapter {adapter.name!r}", f"rank <= {max_rank} (--max-rank)", f"rank {adapter.rank}", "raise --max-rank")
            )
        for path, pair in adapter.weights.items():
            ranks[path] = max(ranks.get(path, 1), max_rank or pair.rank)
    layers = dict(unet.named_modules())
    if unknown := [path for path in ranks if path not in layers]:
        raise InputError(mismatch(f"slot {unknown[0]!r}", "a module of the network", "none of that name", "read the LoRA for this network"))
    return SlotTable(tuple(_new_slot(path, layer, ranks[path]) for path, layer in layers.items() if path in ranks))


def slot_network(unet: nn.Module, adapters: Sequence[FloatAdapter], max_rank: int | None = None) -> tuple[SlottedNetwork, SlotTable]:
    """A network with slots for all `adapters`; the caller's unet stays as it is, the weights are shared.

    Raises:
        InputError, UnsupportedError: as `new_table` and `add_sites`.
    """
    table = new_table(unet, adapters, max_rank)
    copied, feed = share_copy(unet), SlotFeed()
    add_sites(copied)
    for slot in table.slots:
        layer: Any = copied.get_submodule(slot.path)
        made = SlottedLinear(layer, slot, feed) if slot.kind == "linear" else SlottedConv2d(layer, slot, feed)
        copied.set_submodule(slot.path, made)
    return SlottedNetwork(copied, table, feed), table


def _pad(name: str, slot: Slot, pair: LowRank) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = np.zeros(slot.a_shape, np.float32), np.zeros(slot.b_shape, np.float32)
    fits = pair.a.shape[1:] == a.shape[1:] and pair.b.shape[0] == b.shape[0] and pair.rank <= slot.rank
    if not fits:
        raise CompatibilityError(
            mismatch(
                f"adapter {name!r}, slot {slot.path!r}",
                f"A up to {slot.a_shape}, B up to {slot.b_shape}",
                f"{pair.a.shape} and {pair.b.shape}",
                "build the bundle with this adapter",
            )
        )
    a[: pair.rank], b[:, : pair.rank] = pair.a, pair.b
    return a, b


def slot_inputs(adapter: FloatAdapter | None, table: SlotTable) -> dict[str, NDArray[np.float32]]:
    """Every slot input of one adapter, zero-padded to the slot's rank; None is the zero adapter.

    Raises:
        CompatibilityError: the adapter has a target without a slot, or one that does not fit its slot.
    """
    weights = {} if adapter is None else adapter.weights
    name = "" if adapter is None else adapter.name
    slots = table.by_path()
    if outside := [path for path in weights if path not in slots]:
        raise CompatibilityError(
            mismatch(
                f"adapter {name!r}", f"targets among the {len(slots)} slots", ", ".join(outside[:8]), "build the bundle with this adapter"
            )
        )
    inputs = {n: np.zeros(shape, np.float32) for n, shape in table.input_shapes().items()}
    for path, pair in weights.items():
        inputs[slots[path].a_name], inputs[slots[path].b_name] = _pad(name, slots[path], pair)
    return inputs
