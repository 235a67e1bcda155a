"""Gram matrices of layers' inputs: for each layer the sum of `x x^T` over real calls, by which its weight is rounded.

A layer of n inputs has a matrix of n x n, which for the largest convolutions of Stable Diffusion is 2 GB. So each is cut into equal runs
of channels, each with all its taps: between two runs nothing is known. Runs have `LONGEST` inputs, or as many fewer as `GRAM_BYTES` allow
for all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quad.core.component_call import ComponentCall
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.observe.network_call import NetworkCall
from quad.quantize.observe.side_by_side import Behind

GRAM_BYTES = 1_000_000_000
LONGEST = 1152  # inputs: 128 channels of a 3x3 convolution
Key = tuple[str, str]  # component, and path of a layer in it
_BLOCK = 64  # rows of a matrix that are added to at once, each up to its diagonal: the rest is its mirror image
POSITIONS = 256  # of each picture, spread at random: neighbours say much the same
_SHRINK = 0.9  # how much shorter runs are tried than those that took too many bytes


@final
class InputGram:
    """Sums over the inputs of one layer, the taps of a convolution as inputs of their own.

    Args:
        layer: a Linear, or a Conv2d of one group.
        longest: inputs in one run of channels, as near as whole channels come.
    """

    def __init__(self, layer: Layer, longest: int) -> None:
        self._layer = layer
        lengths, taps = run_lengths(layer, longest), math.prod(layer.weight.shape[2:])
        device, wide = layer.weight.device, _wide(layer.weight.device)
        self._channels = [length // taps for length in lengths]
        self._lower = [torch.zeros(length, length, device=device) for length in lengths]  # blocks above the diagonal stay zero
        self._sums, self._count = [torch.zeros(length, dtype=wide, device=device) for length in lengths], 0

    def add(self, inputs: Tensor) -> None:
        """Count what one call gave the layer, `(batch, ..., in)` or `(batch, in, height, width)`."""
        inputs = inputs.detach().float()
        runs = inputs.split(self._channels, dim=-1 if isinstance(self._layer, nn.Linear) else 1)
        for gram, total, run in zip(self._lower, self._sums, runs, strict=True):
            seen = _columns(self._layer, run)  # run by run: what was copied is still in the processor's cache when it is multiplied
            _add_products(gram, seen)
            total += seen.sum(dim=1)
        self._count += seen.shape[1]

    def weigh(self, change: Tensor, energies: Sequence[float]) -> None:
        """Count a change of the input beside the inputs, scaled to so much energy in each run; the mean stays that of the inputs.

        Args:
            change: shaped as an input of `add`.
            energies: of the runs, as of `energies`.
        """
        runs = change.detach().float().split(self._channels, dim=-1 if isinstance(self._layer, nn.Linear) else 1)
        for gram, run, energy in zip(self._lower, runs, energies, strict=True):
            seen = _columns(self._layer, run)
            size = float(seen.square().sum())
            if size > 0.0:
                _add_products(gram, seen, energy / size)

    @property
    def energies(self) -> list[float]:
        """The sum of `|x|^2` in each run."""
        return [float(gram.diagonal().sum()) for gram in self._lower]

    @property
    def grams(self) -> list[Tensor]:
        """The sum of `x x^T` of each run."""
        return [gram.tril() + gram.tril(-1).T for gram in self._lower]

    @property
    def mean(self) -> Tensor:
        """Mean of each input, `(inputs,)`; at a convolution's border zeros are counted as they are read."""
        return torch.cat(self._sums).cpu().double() / self._count


def run_lengths(layer: Layer, longest: int) -> list[int]:
    """Inputs of each run: whole channels, in runs of equal length but for one channel."""
    channels, taps = layer.weight.shape[1], math.prod(layer.weight.shape[2:])
    runs = -(-channels // max(1, longest // taps))
    bounds = [channels * run // runs for run in range(runs + 1)]
    return [(last - first) * taps for first, last in pairwise(bounds)]


def longest_run(layers: list[Layer], budget: int = GRAM_BYTES) -> int:
    """The longest runs of inputs with which the matrices of all these layers take no more than `budget` bytes."""
    longest = LONGEST
    while longest > 1 and sum(4 * length**2 for layer in layers for length in run_lengths(layer, longest)) > budget:
        longest = int(longest * _SHRINK)
    return longest


Grams = dict[Key, InputGram]  # of layers with one and the same input, one and the same


@contextmanager
def gathering(
    networks: Mapping[str, nn.Module], chosen: Callable[[str, str], bool], counted: Callable[[], bool] = lambda: True
) -> Iterator[Grams]:
    """Count the inputs of layers in every call that the networks answer while the block runs, one call after the other.

    Linears that are given one and the same tensor, as q, k and v of an attention are, have one `InputGram`.

    Args:
        networks: component name -> float network with Sites.
        chosen: says of a component and the path of a layer in it whether its inputs are counted.
        counted: says of the call that is made in this thread whether it counts; of those that do there is one at a time.

    Yields:
        Component and path -> what was counted, of layers that a call has reached; complete when the block ends.
    """
    layers = {
        (component, path): layer
        for component, network in networks.items()
        for path, layer in layers_of(network).items()
        if chosen(component, path) and (isinstance(layer, nn.Linear) or (layer.groups == 1 and not isinstance(layer.padding, str)))
    }
    with Behind() as behind:
        counter = _Counter(longest_run(list(layers.values())), behind, counted)
        hooks = [layer.register_forward_pre_hook(counter.hook(key, layer)) for key, layer in layers.items()]
        try:
            yield counter.grams
        finally:
            for hook in hooks:
                hook.remove()


def weigh_effects(network: nn.Module, grams: Mapping[str, InputGram], calls: Sequence[ComponentCall], share: float) -> None:
    """Count what adapters change in the inputs of layers, each call alike, however faint its adapter.

    Args:
        network: float network with slots.
        grams: path of a layer -> what was counted of its inputs.
        calls: of that network with adapters; each is made again with its slots and without.
        share: of the inputs' energy that all these changes have together.
    """
    owners = dict[int, str]()  # of layers that share a matrix, the first
    for path, gram in grams.items():
        owners.setdefault(id(gram), path)
    energies = {path: [share / max(len(calls), 1) * energy for energy in grams[path].energies] for path in owners.values()}
    every = layers_of(network)
    layers = {path: every[path] for path in energies}
    with Behind() as behind:

        def weigh(path: str, x: Tensor) -> None:
            if (before := plain.pop(path, None)) is not None:
                behind.give(partial(_weigh, grams[path], x, before, energies[path]))

        for call in calls:
            again, plain = NetworkCall.of(network, call), dict[str, Tensor]()
            _with_inputs(layers, again.plain, plain.__setitem__)
            _with_inputs(layers, again.bound, weigh)


def _weigh(gram: InputGram, x: Tensor, before: Tensor, energies: Sequence[float]) -> None:
    gram.weigh(x - before, energies)


def _with_inputs(layers: Mapping[str, Layer], call: Callable[[], Tensor], take: Callable[[str, Tensor], None]) -> None:
    """One call; each layer's path and input are handed over as it is reached."""

    def taking(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, arguments: take(path, arguments[0])

    hooks = [layer.register_forward_pre_hook(taking(path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()


@final
class _Counter:
    """Counts what layers are given, each tensor once.

    Args:
        behind: does the sums while the network goes on.
        counted: as of `gathering`.
    """

    def __init__(self, longest: int, behind: Behind, counted: Callable[[], bool]) -> None:
        self._longest, self._behind, self._is_counted = longest, behind, counted
        self.grams: Grams = {}
        self._sharing: set[Key] = set()  # layers whose inputs another one counts
        self._last: tuple[Tensor, InputGram] | None = None  # what a Linear was given last

    def hook(self, key: Key, layer: Layer) -> Callable[[nn.Module, Any], None]:
        """For the forward calls of a layer."""
        return lambda module, arguments: self._count(key, layer, arguments[0]) if self._is_counted() else None

    def _count(self, key: Key, layer: Layer, inputs: Tensor) -> None:
        counted = self._last[1] if self._last is not None and self._last[0] is inputs and isinstance(layer, nn.Linear) else None
        if key not in self.grams:
            self.grams[key] = counted or InputGram(layer, self._longest)
            if counted is not None:
                self._sharing.add(key)
        if key in self._sharing and counted is not self.grams[key]:  # the two part company
            self._behind.wait()
            self.grams[key] = deepcopy(self.grams[key])
            self._sharing.remove(key)
        if key not in self._sharing:
            self._behind.give(partial(self.grams[key].add, inputs))
        self._last = (inputs, self.grams[key]) if isinstance(layer, nn.Linear) else None


def _add_products(gram: Tensor, seen: Tensor, factor: float = 1.0) -> None:
    """Add the products of columns `(inputs, calls)` to the lower triangle, and to the rest of its blocks."""
    for first in range(0, len(gram), _BLOCK):
        rows = slice(first, first + _BLOCK)
        gram[rows, : rows.stop].addmm_(seen[rows], seen[: rows.stop].T, alpha=factor)


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """`(inputs, calls)`: what each output that is looked at was made of."""
    if isinstance(layer, nn.Linear):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return tokens[:, torch.from_numpy(_positions(tokens.shape[1])).to(x.device)].reshape(-1, x.shape[-1]).T
    (down, right), (rows, columns) = layer.stride, layer.kernel_size
    above, before = (int(pad) for pad in layer.padding)
    padded = functional.pad(x, (before, before, above, above))
    reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip((rows, columns), layer.dilation, strict=True)]
    height, width = (padded.shape[2] - reach[0]) // down + 1, (padded.shape[3] - reach[1]) // right + 1
    if height * width <= POSITIONS:
        whole: Tensor = functional.unfold(x, (rows, columns), layer.dilation, (above, before), layer.stride)
        return whole.transpose(0, 1).flatten(1)
    tops, lefts = np.divmod(_positions(height * width), width)
    taps = np.add.outer(np.arange(rows) * layer.dilation[0] * padded.shape[3], np.arange(columns) * layer.dilation[1]).ravel()
    places = torch.from_numpy(np.add.outer(taps, tops * down * padded.shape[3] + lefts * right)).to(x.device)
    patches: Tensor = padded.flatten(2).index_select(2, places.flatten()).reshape(*x.shape[:2], *places.shape)
    # (batch, channels, taps, positions)
    return patches.permute(1, 2, 0, 3).reshape(-1, patches.shape[0] * patches.shape[3])


def _wide(device: torch.device) -> torch.dtype:
    """The type of long sums; Apple's GPUs have no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


def _positions(count: int) -> np.ndarray:
    """Places in a picture that are looked at, all of a small one; the same ones at every call."""
    return np.arange(count) if count <= POSITIONS else np.sort(np.random.default_rng(count).choice(count, POSITIONS, replace=False))
