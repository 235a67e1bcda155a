"""quantsim: the float network with every encoded weight and activation sent through its encoding.

The weights are replaced in this network's own modules only: another network that shares them does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quad.core.profile import Profile
from quad.core.tensor_names import bias_name, weight_name
from quad.model.slots.layers import layers_of, tables_of
from quad.quantize.encodings.fake_quantize import FakeQuantizer, fake_quantize
from quad.quantize.observe.observers import transforming


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
    before: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def put(owner: nn.Module, kind: str, values: torch.Tensor, like: torch.Tensor) -> None:
        before.append((owner, kind, getattr(owner, kind)))
        setattr(owner, kind, nn.Parameter(values.to(like.device, like.dtype), requires_grad=False))

    layers = layers_of(network)
    owners: dict[str, nn.Linear | nn.Conv2d | nn.Embedding] = {**layers, **tables_of(network)}
    try:
        for path, owner in owners.items():
            weight = encodings.get(weight_name(path))
            if weight is not None:
                values = fake_quantize(owner.weight.detach(), weight)
                if not torch.equal(values, owner.weight):  # of one that lies on its lattice no second copy is held
                    put(owner, "weight", values, owner.weight)
        for path, layer in layers.items():
            bias = (biases or {}).get(bias_name(path))
            if bias is not None:
                put(layer, "bias", torch.from_numpy(bias), layer.weight)
        with transforming(network, quantizers.get):
            yield
    finally:
        for changed, kind, parameter in before:
            setattr(changed, kind, parameter)
