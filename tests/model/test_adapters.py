"""A network described for a LoRA file: its layers in their order, and weights that are fetched when they are asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from quad.model.adapters import layout_of


def test_layers_and_their_weights() -> None:
    network = nn.ModuleDict({"first": nn.Linear(3, 5), "norm": nn.LayerNorm(5), "block": nn.Sequential(nn.Conv2d(4, 2, (1, 3)))})
    layout = layout_of(network)
    assert list(layout.layers) == ["first", "block.0"]
    assert layout.complete
    linear, convolution = (layout.layers[path] for path in ("first", "block.0"))
    assert linear is not None
    assert convolution is not None
    assert (linear.shape, linear.is_convolution, linear.inputs) == ((5, 3), False, 3)
    assert (convolution.shape, convolution.is_convolution, convolution.kernel, convolution.inputs) == ((2, 4, 1, 3), True, (1, 3), 12)
    assert linear.weight is not None
    with torch.no_grad():
        network["first"].weight.fill_(0.5)
    np.testing.assert_array_equal(linear.weight(), np.full((5, 3), 0.5))


def test_a_network_without_weights_has_shapes_alone() -> None:
    with torch.device("meta"):
        layout = layout_of(nn.Sequential(nn.Linear(3, 5)))
    assert layout.layers["0"] is not None
    assert layout.layers["0"].weight is None
