"""The order in which activation sites go to 8 bits: first those whose rounding, alone, changes the U-Net's output least.

Source: docs/method.md section 5, step 7.
Everything else stays in float, so that the floor of rounded weights does not hide small damage. Sites that read one and the same tensor
(q, k and v of a self-attention) are one to an integer kernel: they are measured together and go together.

    |y_site - y|^2 ~ |J e|^2 ~ E_u sum_i (u^T J)_i^2 e_i^2        J = dy/dx at the site, u random signs

| symbol | here |
|---|---|
| e | rounding error of the tensor that the site reads, `Q(x) - x` |
| u^T J | its gradient when u is sent back from the output |

Rounding errors of two elements have nothing to do with each other, so what their products add to `(u^T J e)^2` is 0 on average. Without
them a single u tells as much as four do with them (ADR 76).

One backward pass measures all sites at once, where rounding one site after the other would cost a call each: on the reference model 7
times the time for the same 262 sites of 328 but three, on a network of Stable Diffusion's size a day (ADR 12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import final
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.encoding import Encoding
from quad.core.errors import InputError, mismatch
from quad.model.device import device_of, moved
from quad.model.slots.slot_tensors import network_slots
from quad.quantize.correct.gradient_tap import tap_gradient
from quad.quantize.encodings.fake_quantize import FakeQuantizer
from quad.quantize.encodings.rules import product_of, turn_of
from quad.quantize.observe.observers import transforming
from quad.quantize.observe.probes import Probe
from quad.quantize.observe.short_floats import LARGE
from quad.quantize.observe.side_by_side import one_lane
from quad.quantize.processes.dealt import json_codec, together

DRAWS = 12  # of u, over all sources (ADR 76); damages of one network span five decades
_SEED = 0
_TAPS: ContextVar[_Taps] = ContextVar("quad_taps")  # of the call that is made in this thread
SlotValues = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class SiteDamage:
    """The damage that one site at 8 bits does on its own.

    Args:
        damage: mean over sources of `|y_site - y|^2 / |y|^2`; inf where no probe reached the site.
        turn: it stays at 16 bits while sites of an earlier turn are left.
    """

    name: str
    damage: float
    turn: int


def rank_sites(
    network: nn.Module,
    encodings: Mapping[str, Encoding],
    probes: Mapping[str, Sequence[Probe]],
    slots: SlotValues,
    draws: int = DRAWS,
    *,
    products: bool = False,
) -> tuple[SiteDamage, ...]:
    """Every site of `encodings`, the first to go to 8 bits first.

    Args:
        network: float slotted network.
        encodings: site -> its 8-bit encoding.
        probes: source -> calls of full-precision runs; one row of one call of each is used, the sources taking turns along their runs and
            at the sides of guidance: a profile is shared by all of them.
        slots: source -> float slot inputs of its adapter; a source without any is the base.
        draws: random directions, over all sources; each gets one at least.
        products: the target multiplies attention's operands as integers: the two of a product are one, with the damage of both.

    Raises:
        InputError: there is no probe.
    """
    chosen = _one_each({source: calls for source, calls in probes.items() if calls})
    if not chosen:
        raise InputError(mismatch("site ranking", "at least one probe", "none", "give calibration samples"))
    device = device_of(network)
    signs = dict(zip(chosen, _signs(network, chosen, slots, _shares(draws, len(chosen))), strict=True))

    def damages(source: str) -> dict[str, float]:
        return _damages(
            network, moved(chosen[source].tensors(), device), network_slots(slots.get(source, {}), network), encodings, signs[source]
        )

    damage: dict[str, float] = {}
    with transforming(network, lambda name: partial(_tapped, encodings[name], name) if name in encodings else None), _lanes_for(network):
        every = together(damages, list(chosen), json_codec(dict[str, float]))
    for of_source in every:
        for name, change in of_source.items():
            damage[name] = damage.get(name, 0.0) + change / len(chosen)
    units = {name: product_of(name) if products else name for name in encodings}
    sums: dict[str, float] = {}
    for name, unit in units.items():
        sums[unit] = sums.get(unit, 0.0) + damage.get(name, float("inf"))
    ranked = [SiteDamage(name, sums[unit], turn_of(name, products=products)) for name, unit in units.items()]
    return tuple(sorted(ranked, key=lambda site: (site.turn, site.damage, units[site.name], site.name)))


def _lanes_for(network: nn.Module) -> AbstractContextManager[object]:
    """One call at a time of a large network: what it holds for the way back is gigabytes, and the most that a build holds at once."""
    return one_lane() if sum(parameter.numel() for parameter in network.parameters()) >= LARGE else nullcontext()


def eight_bit_sites(ranked: Sequence[str], percent: float) -> tuple[str, ...]:
    """The first `percent` % of the sites, rounded to the nearest whole number."""
    return tuple(ranked[: round(len(ranked) * percent / 100.0)])


def _one_each(probes: Mapping[str, Sequence[Probe]]) -> dict[str, Probe]:
    """One row of one call of each source: the first source's from the beginning of its run, the last one's from the end, the two sides of
    guidance in turns. It is the number of rows that costs, and what is held of one of them is a build's peak in memory."""
    share = 1.0 / len(probes) if probes else 0.0
    return {source: calls[int((k + 0.5) * share * len(calls))].row(k) for k, (source, calls) in enumerate(probes.items())}


def _shares(draws: int, sources: int) -> list[int]:
    """Of so many draws those of each source, one at least, as equal as can be."""
    return [max(1, draws // sources + (k < draws % sources)) for k in range(sources)]


def _signs(network: nn.Module, chosen: Mapping[str, Probe], slots: SlotValues, draws: Sequence[int]) -> list[list[Tensor]]:
    """`u` of every draw, of each source in turn: drawn before the work is dealt, so that it does not matter who does it."""
    generator = torch.Generator().manual_seed(_SEED)
    signs = []
    for (source, probe), count in zip(chosen.items(), draws, strict=True):
        if probe.expected is None:
            with torch.no_grad():
                device = device_of(network)
                shape = network(*moved(probe.tensors(), device), network_slots(slots.get(source, {}), network)).shape
        else:
            shape = torch.Size(probe.expected.shape)
        signs.append([torch.randint(0, 2, shape, generator=generator).float() * 2 - 1 for _ in range(count)])
    return signs


def _damages(
    network: nn.Module, inputs: tuple[Tensor, ...], slots: Mapping[str, Tensor], encodings: Mapping[str, Encoding], signs: Sequence[Tensor]
) -> dict[str, float]:
    """Site -> `E_u sum_i (u^T J)_i^2 e_i^2 / |y|^2` for one call; the sites of one tensor have one."""
    taps = _Taps()
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)  # every site then lies on a path that gradients take
    token = _TAPS.set(taps)
    try:
        with torch.enable_grad():
            output: Tensor = network(*leaves, slots)
    finally:
        _TAPS.reset(token)
    damages = {name: 0.0 for tap in taps for name in tap.names}
    power = float(output.detach().square().sum().clamp(min=1e-30))
    for draw, u in enumerate(signs):
        torch.autograd.backward(output, u.to(output.device), retain_graph=draw + 1 < len(signs), inputs=leaves)
        for tap in taps:
            change = tap.take() / (power * len(signs))
            damages.update({name: damages[name] + change for name in tap.names})
    return damages


def _tapped(encoding: Encoding, name: str, x: Tensor) -> Tensor:
    """The tensor that a site reads in this thread's call, tapped."""
    tap = _TAPS.get().of(x, encoding)
    tap.names.append(name)
    return tap_gradient(x, tap.add)


@final
class _Tap:
    """The rounding error of one tensor that sites read, and the sum of `(u^T J)_i^2 e_i^2` once the gradients of all its readers passed.

    The error is held in bf16, and the tensor itself is not: where its readers have no need of it, it leaves memory.
    """

    def __init__(self, x: Tensor, encoding: Encoding) -> None:
        self.names: list[str] = []
        detached = x.detach()
        self._error, self._owner = (FakeQuantizer(encoding)(detached) - detached).bfloat16(), ref(x)
        self._gradient: Tensor | None = None
        self._readers, self._sum = 0, 0.0

    def is_of(self, x: Tensor) -> bool:
        """Whether it is this tensor's."""
        return self._owner() is x

    def add(self, gradient: Tensor) -> None:
        """The gradient of one reader, as of `names`; the last one's makes the sum whole."""
        self._gradient = gradient if self._gradient is None else self._gradient + gradient
        self._readers += 1
        if self._readers == len(self.names):
            self._close()

    def take(self) -> float:
        """The sum since the last time."""
        self._close()  # of readers that the output does not hang on there is no gradient
        total, self._sum = self._sum, 0.0
        return total

    def _close(self) -> None:
        if self._gradient is not None:
            self._sum += float((self._error * self._gradient).square().sum())
        self._gradient, self._readers = None, 0


@final
class _Taps:
    """Those of one call."""

    def __init__(self) -> None:
        self._every: list[_Tap] = []
        self._latest: dict[int, _Tap] = {}  # by the tensor's identity, which a later one may have again

    def __iter__(self) -> Iterator[_Tap]:
        return iter(self._every)

    def of(self, x: Tensor, encoding: Encoding) -> _Tap:
        """The tensor's own, new where it has none."""
        tap = self._latest.get(id(x))
        if tap is None or not tap.is_of(x):
            tap = self._latest[id(x)] = _Tap(x, encoding)
            self._every.append(tap)
        return tap
