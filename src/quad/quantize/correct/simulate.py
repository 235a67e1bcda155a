"""quantsim: the float network with every encoded weight and activation sent through its encoding.

The weights are replaced in this network's own modules only: another network that shares them does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.encoding import Encoding
from quad.core.profile import Profile
from quad.core.tensor_names import Role, bias_name, role_of, weight_name
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import Layer, layers_of, tables_of
from quad.quantize.encodings.fake_quantize import FakeQuantizer, fake_quantize, quantize
from quad.quantize.observe.observers import transforming

_LATTICE, _ROUNDED_FROM = "quad_lattice", "quad_rounded_from"  # attributes of a parameter: its encoding, and what it was before
_BYTE = 8


def mark_lattice(weight: torch.Tensor, encoding: Encoding) -> None:
    """Remember of a weight that its encoding leaves it as it is: nobody rounds it again."""
    setattr(weight, _LATTICE, encoding)


def lies_on(weight: torch.Tensor, encoding: Encoding) -> bool:
    """Whether that is known of a weight."""
    return getattr(weight, _LATTICE, None) == encoding


def of_weights(profile: Profile, component: str) -> Profile:
    """The encodings of a component's weights alone: a network simulated with them need not round them for each profile that shares them."""
    encodings = profile.component(component)
    weights = {name: encoding for name, encoding in encodings.items() if role_of(name) is Role.WEIGHT}
    return msgspec.structs.replace(profile, encodings={component: weights})


@contextmanager
def simulated(
    network: nn.Module, profile: Profile, component: str, biases: Mapping[str, NDArray[np.float32]] | None = None
) -> Iterator[None]:
    """Quantize `network` while the block runs.

    Slot inputs are not touched here: give the network `dequantize_adapter(quantize_adapter(...))`.

    Args:
        network: float network with Sites.
        profile: a tensor without an encoding stays in float, as it does in the compiled graph.
        component: the network's name in the profile.
        biases: `<module path>.bias` -> corrected bias (`corrected_biases`); the others keep their own.
    """
    encodings = profile.component(component)
    quantizers = {name: FakeQuantizer(encoding) for name, encoding in encodings.items()}
    weights_before: list[tuple[nn.Module, HeldWeight]] = []
    biases_before: list[tuple[Layer, torch.Tensor | None]] = []

    layers = layers_of(network)
    owners: dict[str, nn.Linear | nn.Conv2d | nn.Embedding] = {**layers, **tables_of(network)}
    try:
        for path, owner in owners.items():
            weight = encodings.get(weight_name(path))
            if weight is not None and not lies_on(owner.weight, weight):
                held = HeldWeight.of(owner)
                original: HeldWeight = getattr(owner.weight, _ROUNDED_FROM, held)
                rounded = _rounded(original, weight)
                if torch.equal(rounded.numbers(), held.numbers()):  # of one that lies on its lattice no second copy is held
                    mark_lattice(owner.weight, weight)
                else:
                    weights_before.append((owner, held))
                    rounded.put(owner)
                    mark_lattice(owner.weight, weight)
                    setattr(owner.weight, _ROUNDED_FROM, original)
        for path, layer in layers.items():
            bias = (biases or {}).get(bias_name(path))
            if bias is not None:
                biases_before.append((layer, layer.bias))
                layer.bias = nn.Parameter(torch.from_numpy(bias).to(layer.weight.device), requires_grad=False)
        with transforming(network, quantizers.get):
            yield
    finally:
        for changed, held in reversed(weights_before):
            held.put(changed)
        for layer, before in reversed(biases_before):
            layer.bias = before


def _rounded(original: HeldWeight, encoding: Encoding) -> HeldWeight:
    """A weight through its encoding; as integers where it is held in less than float32."""
    numbers = original.numbers().detach()
    if original.is_compact and encoding.symmetric and encoding.bits == _BYTE:
        return HeldWeight.of_integers(quantize(numbers, encoding), encoding)
    return HeldWeight(nn.Parameter(fake_quantize(numbers, encoding), requires_grad=False))
