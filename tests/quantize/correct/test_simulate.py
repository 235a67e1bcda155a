"""quantsim: near the float network, exact for the zero adapter, invisible afterwards; bias correction removes the mean error."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.fit.integers import dequantize_adapter, quantize_adapter
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import weights_of
from quad.quantize.correct import simulate as simulation
from quad.quantize.correct.bias import apply_biases, corrected_biases
from quad.quantize.correct.simulate import of_weights, simulated
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.encodings.rules import Rule
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from tests.conftest import Spy


def sqnr_db(found: Tensor, true: Tensor) -> float:
    return float(10 * torch.log10(true.square().mean() / (found - true).square().mean()))


def quantized_slots(tiny: Any, adapter: Any) -> dict[str, Tensor]:
    integers = quantize_adapter(adapter, tiny.table, tiny.profile)
    return {name: torch.from_numpy(v) for name, v in dequantize_adapter(integers, tiny.table, tiny.profile).items()}


def test_w8a16_is_near_the_float_network_with_every_adapter(tiny: Any) -> None:
    for adapter in (None, *tiny.adapters):
        true = tiny.network(*tiny.inputs, tiny.slots(adapter))
        with simulated(tiny.network, tiny.profile, "unet"):
            found = tiny.network(*tiny.inputs, quantized_slots(tiny, adapter))
        assert 30 < sqnr_db(found, true) < 80


def test_nothing_is_left_behind(tiny: Any) -> None:
    before, weights = tiny.network(*tiny.inputs, {}), weights_of(tiny.network)
    with simulated(tiny.network, tiny.profile, "unet"):
        assert not torch.equal(tiny.network(*tiny.inputs, {}), before)
    assert torch.equal(tiny.network(*tiny.inputs, {}), before)
    assert all(np.array_equal(weights[name], values) for name, values in weights_of(tiny.network).items())
    assert all(site.transform is None for site in tiny.network.sites.values())


def test_zero_adapter_is_the_simulated_base_bit_for_bit(tiny: Any) -> None:
    with simulated(tiny.network, tiny.profile, "unet"):
        assert torch.equal(tiny.network(*tiny.inputs, quantized_slots(tiny, None)), tiny.network(*tiny.inputs, {}))


def test_without_encodings_it_is_the_float_network(tiny: Any) -> None:
    empty = msgspec.structs.replace(tiny.profile, encodings={})
    with simulated(tiny.network, empty, "unet"):
        inside = tiny.network(*tiny.inputs, {})
    assert torch.equal(inside, tiny.network(*tiny.inputs, {}))


def test_weights_that_are_rounded_already_are_not_rounded_again(tiny: Any, spy: Spy) -> None:
    with simulated(tiny.network, tiny.profile, "unet"):
        alone = tiny.network(*tiny.inputs, {})
    with simulated(tiny.network, of_weights(tiny.profile, "unet"), "unet"):
        rounded = spy(simulation, "fake_quantize")
        with simulated(tiny.network, tiny.profile, "unet"):
            assert torch.equal(tiny.network(*tiny.inputs, {}), alone)
        assert rounded == []
        other = with_scales_doubled(tiny.profile)
        with simulated(tiny.network, other, "unet"):
            inside = tiny.network(*tiny.inputs, {})
    with simulated(tiny.network, other, "unet"):  # from the float weights, not from those of the block around
        assert torch.equal(tiny.network(*tiny.inputs, {}), inside)


def with_scales_doubled(profile: Profile) -> Profile:
    """The same with coarser weights."""
    encodings = {
        name: msgspec.structs.replace(encoding, scale=tuple(2 * scale for scale in encoding.scale))
        for name, encoding in of_weights(profile, "unet").component("unet").items()
    }
    return msgspec.structs.replace(profile, encodings={"unet": {**profile.component("unet"), **encodings}})


def test_gradients_reach_the_slots(tiny: Any) -> None:
    slots = {name: values.clone().requires_grad_() for name, values in quantized_slots(tiny, tiny.adapters[1]).items()}
    with simulated(tiny.network, tiny.profile, "unet"):
        tiny.network(*tiny.inputs, slots).square().sum().backward()
    assert all(values.grad is not None and values.grad.any() for values in slots.values())


def test_bias_correction_removes_the_mean_error() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1))
    add_sites(network)
    network.requires_grad_(False)
    x = torch.rand(4, 6, 8, 8) + 1.0
    statistics = observe({"net": network}, [Feed("one", partial(network, x))])
    coarse = UnifyOptions(rules=(Rule(component="*", name="0.weight", bits=8, shape="channel"),), ranges=RangeOptions(method="minmax"))
    profile = unify(statistics, {"net": weights_of(network)}, SlotTable(()), (), coarse)
    biases = corrected_biases(network, "net", statistics, profile)
    assert list(biases) == ["0.bias"]

    def mean_error(corrections: dict[str, np.ndarray] | None) -> float:
        with simulated(network, profile, "net", corrections):
            found = network[0](x)
        return float((found - network[0](x)).mean(dim=(0, 2, 3)).abs().max())

    assert mean_error(biases) < 1e-6 < 1e-4 < mean_error(None)
    float_bias = network[0].bias.clone()
    apply_biases(network, biases)
    assert torch.allclose(network[0].bias, torch.from_numpy(biases["0.bias"]))
    assert not torch.equal(network[0].bias, float_bias)
