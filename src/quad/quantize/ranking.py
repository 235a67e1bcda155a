"""Which activation sites go to 8 bits first: those whose rounding, alone, changes the U-Net's output least.

Source: method.md section 5, step 7.
Everything else stays in float, so that the floor of rounded weights does not hide small damage. Sites that read one and the same tensor
(q, k and v of a self-attention) are one to an integer kernel: they are measured together and go together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.encoding import Encoding
from quad.core.errors import InputError, mismatch
from quad.quantize.affine import FakeQuantizer
from quad.quantize.observers import transforming
from quad.quantize.probes import Probe
from quad.quantize.rules import goes_last

# Copies of the calls in one batch, each with other sites rounded: a call of a small network is mostly overhead.
COPIES = 16
SlotValues = Mapping[str, Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class SiteDamage:
    """What one site at 8 bits does on its own.

    Args:
        damage: mean over sources of `|y_site - y|^2 / |y|^2`; inf where no probe reached the site.
        last: one of the sites that stay at 16 bits while others are left.
    """

    name: str
    damage: float
    last: bool


def rank_sites(
    network: nn.Module,
    encodings: Mapping[str, Encoding],
    probes: Mapping[str, Sequence[Probe]],
    slots: SlotValues,
) -> tuple[SiteDamage, ...]:
    """Every site of `encodings`, the first to go to 8 bits first.

    Args:
        network: float slotted network.
        encodings: site -> its 8-bit encoding.
        probes: source -> calls of full-precision runs; one of each is used, the sources taking turns along their runs: it is the number of
            calls that costs, and a profile is shared by all sources and all steps.
        slots: source -> float slot inputs of its adapter; a source without any is the base.

    Raises:
        InputError: there is no probe.
    """
    chosen = _one_each({source: found for source, found in probes.items() if found})
    batches = [(probe.tensors(), slots.get(source, {})) for source, probe in chosen.items()]
    if not batches:
        raise InputError(mismatch("site ranking", "at least one probe", "none", "give calibration samples"))
    damage: dict[str, float] = {}
    with torch.no_grad():
        for inputs, values in batches:
            tensors = {name: torch.from_numpy(array) for name, array in values.items()}
            true, groups = _readers(network, inputs, tensors, encodings)
            for first in range(0, len(groups), COPIES):
                some = groups[first : first + COPIES]
                for names, found in zip(some, _isolated(network, inputs, tensors, encodings, some), strict=True):
                    change = float((found - true).square().sum() / true.square().sum().clamp(min=1e-30)) / len(batches)
                    damage.update({name: damage.get(name, 0.0) + change for name in names})
    ranked = [SiteDamage(name, damage.get(name, float("inf")), goes_last(name)) for name in encodings]
    return tuple(sorted(ranked, key=lambda site: (site.last, site.damage, site.name)))


def eight_bit_sites(ranked: Sequence[str], percent: float) -> tuple[str, ...]:
    """The first `percent` % of the sites, rounded to the nearest whole number."""
    return tuple(ranked[: round(len(ranked) * percent / 100.0)])


def _one_each(probes: Mapping[str, Sequence[Probe]]) -> dict[str, Probe]:
    """One call of each source, the first source's from the beginning of its run, the last one's from the end."""
    share = 1.0 / len(probes) if probes else 0.0
    return {source: found[int((k + 0.5) * share * len(found))] for k, (source, found) in enumerate(probes.items())}


def _readers(
    network: nn.Module, inputs: tuple[Tensor, ...], slots: Mapping[str, Tensor], encodings: Mapping[str, Encoding]
) -> tuple[Tensor, list[list[str]]]:
    """The float output, and the encoded sites grouped by the tensor they read."""
    seen: list[tuple[str, Tensor]] = []

    def keep(name: str, x: Tensor) -> Tensor:
        seen.append((name, x))  # the tensor is held, so that no later one can take its identity
        return x

    with transforming(network, lambda name: (lambda x: keep(name, x)) if name in encodings else None):
        output: Tensor = network(*inputs, slots)
    groups: dict[int, list[str]] = {}
    for name, x in seen:
        groups.setdefault(id(x), []).append(name)
    return output, list(groups.values())


def _isolated(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    slots: Mapping[str, Tensor],
    encodings: Mapping[str, Encoding],
    groups: Sequence[Sequence[str]],
) -> tuple[Tensor, ...]:
    """The output with the sites of one group rounded, for each group: all in one call, group k on the k-th copy of the inputs."""
    rows = len(inputs[0])
    place = {name: k for k, names in enumerate(groups) for name in names}

    def rounding(name: str) -> Callable[[Tensor], Tensor] | None:
        if name not in place:
            return None
        quantizer, own = FakeQuantizer(encodings[name]), slice(place[name] * rows, (place[name] + 1) * rows)

        def transform(x: Tensor) -> Tensor:
            y = x.clone()
            y[own] = quantizer(x[own])
            return y

        return transform

    with transforming(network, rounding):
        output: Tensor = network(*(x.repeat(len(groups), *(1,) * (x.ndim - 1)) for x in inputs), slots)
    return tuple(output[first : first + rows] for first in range(0, len(output), rows))
