"""Gram matrices of layers' inputs, against torch's own unfolding; what cutting them into runs leaves, and what they may take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quad.core.component_call import UNET_INPUTS, ComponentCall
from quad.lora.fit.integers import balanced_inputs
from quad.model.base.modules import share_copy
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import Layer, layers_of
from quad.quantize.observe import input_grams, side_by_side
from quad.quantize.observe.input_grams import LONGEST, InputGram, gathering, longest_run, run_lengths, weigh_effects
from tests.quantize.conftest import Tiny

GEOMETRIES = ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2}, {"kernel_size": (3, 1), "padding": (1, 0), "dilation": 2})


def unfolded(layer: Layer, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T
    columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), *(nn.Conv2d(6, 4, **geometry) for geometry in GEOMETRIES)])
def test_sums_over_all_that_a_layer_reads(layer: Layer) -> None:
    torch.manual_seed(0)
    calls = [torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 9, 8) for _ in range(2)]
    gram = InputGram(layer, 1000)
    for call in calls:
        gram.add(call)
    seen = torch.cat([unfolded(layer, call) for call in calls], dim=1)
    assert len(gram.grams) == 1
    torch.testing.assert_close(gram.grams[0], seen @ seen.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gram.mean.float(), seen.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_of_a_large_picture_some_places_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_grams, "POSITIONS", 40)
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 16, 16)
    first, second, whole = InputGram(layer, 1000), InputGram(layer, 1000), unfolded(layer, x)
    first.add(x)
    second.add(x)
    assert torch.equal(first.grams[0], second.grams[0])
    energy, all_energy = float(first.grams[0].trace()) / 40, float(whole.square().sum()) / whole.shape[1]
    assert abs(energy / all_energy - 1) < 0.3


def test_runs_are_diagonal_blocks_of_whole_channels() -> None:
    layer, x = nn.Conv2d(10, 4, 3), torch.randn(1, 10, 6, 6)
    whole, cut = InputGram(layer, 1000), InputGram(layer, 30)
    whole.add(x)
    cut.add(x)
    assert run_lengths(layer, 30) == [18, 27, 18, 27]
    start = 0
    for gram in cut.grams:
        torch.testing.assert_close(gram, whole.grams[0][start : start + len(gram), start : start + len(gram)])
        start += len(gram)


def test_all_of_them_take_what_is_allowed() -> None:
    layers: list[Layer] = [nn.Conv2d(2560, 8, 3), nn.Conv2d(320, 8, 3), nn.Linear(768, 8), nn.Linear(5120, 8)]
    for budget in (10_000_000, 100_000_000):
        longest = longest_run(layers, budget)
        taken = sum(4 * length**2 for layer in layers for length in run_lengths(layer, longest))
        assert 0.5 * budget < taken <= budget
    assert longest_run([nn.Linear(64, 8)]) == LONGEST


def test_chosen_layers_are_counted_and_let_go() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2))
    add_sites(network)
    with torch.no_grad(), gathering({"net": network}, lambda component, path: path != "0") as grams:
        network(torch.randn(1, 3, 5, 5))
    assert list(grams) == [("net", "1")]
    assert all(not layer._forward_pre_hooks for layer in layers_of(network).values())


class Attention(nn.Module):
    """Its q, k and v read one tensor, or k and v another one than q."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        seen = x if text is None else text
        return self.to_out(self.to_q(x) + self.to_k(seen) + self.to_v(seen))


def counted(network: nn.Module, calls: list[tuple[Tensor, ...]], lanes: int) -> dict[str, InputGram]:
    """What the layers of a network are given in these calls, counted on so many cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "lanes", lambda: lanes)
        with torch.no_grad(), gathering({"net": network}, lambda component, path: True) as grams:
            for call in calls:
                network(*call)
    return {path: gram for (_, path), gram in grams.items()}


@pytest.mark.parametrize("lanes", [1, 2])
def test_layers_with_one_input_share_what_is_counted_until_they_part_company(lanes: int) -> None:
    network = Attention()
    add_sites(network)
    x, text = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    one = x.flatten(0, 1).T @ x.flatten(0, 1)
    grams = counted(network, [(x,), (x,)], lanes)
    assert grams["to_q"] is grams["to_k"] is grams["to_v"] is not grams["to_out"]
    torch.testing.assert_close(grams["to_q"].grams[0], 2 * one)
    grams = counted(network, [(x,), (x,), (x, text)], lanes)
    assert grams["to_q"] is not grams["to_k"]
    torch.testing.assert_close(grams["to_q"].grams[0], 3 * one)
    torch.testing.assert_close(grams["to_k"].grams[0], grams["to_v"].grams[0])


def test_on_two_cores_the_sums_are_those_of_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    add_sites(network)
    calls = [(torch.randn(1, 3, 8, 8),) for _ in range(5)]
    one, two = (counted(network, calls, lanes) for lanes in (1, 2))
    assert one.keys() == two.keys()
    for path, gram in one.items():
        assert all(torch.equal(a, b) for a, b in zip(gram.grams, two[path].grams, strict=True))
        assert torch.equal(gram.mean, two[path].mean)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, padding=1)])
def test_a_change_has_the_energy_that_is_asked_for_and_leaves_the_mean(layer: Layer) -> None:
    torch.manual_seed(0)
    x, change = (torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 9, 8) for _ in range(2))
    gram = InputGram(layer, 1000)
    gram.add(x)
    (before,), mean, (energy,) = gram.grams, gram.mean.clone(), gram.energies
    gram.weigh(0.001 * change, [energy / 2])
    seen = unfolded(layer, change)
    torch.testing.assert_close(gram.grams[0], before + energy / 2 * (seen @ seen.T) / seen.square().sum(), rtol=1e-3, atol=1e-3)
    assert torch.equal(gram.mean, mean)
    after = gram.grams[0].clone()
    gram.weigh(torch.zeros_like(change), [energy])
    assert torch.equal(gram.grams[0], after)


def test_a_faint_adapter_counts_as_much_as_a_loud_one(tiny: Tiny) -> None:
    """And what the adapter leaves alone, before its first slot, is not counted twice."""
    slots, names = balanced_inputs(tiny.adapters[1], tiny.table), {slot.b_name for slot in tiny.table.of("unet").slots}
    inputs = dict(zip(UNET_INPUTS, (tensor.numpy() for tensor in tiny.inputs), strict=True))

    def weighed(strength: float) -> dict[str, InputGram]:
        network = share_copy(tiny.network)
        bound = {name: array * np.float32(strength) if name in names else array for name, array in slots.items()}
        call = ComponentCall(source="loud", inputs=inputs, slots=bound)
        with torch.no_grad(), gathering({"unet": network}, lambda component, path: True) as grams:
            network(*tiny.inputs)
        of_unet = {path: gram for (_, path), gram in grams.items()}
        weigh_effects(network, of_unet, [call], 0.5)
        return of_unet

    loud, faint, plain = weighed(1.0), weighed(0.01), weighed(0.0)
    paths = [path for path in loud if not torch.equal(loud[path].grams[0], plain[path].grams[0])]
    assert "conv_in" not in paths
    assert "conv_out" in paths
    for path in ("conv_out", paths[0]):
        ratio = sum(loud[path].energies) / sum(plain[path].energies)
        assert ratio == pytest.approx(1.5, rel=1e-3)
        assert sum(faint[path].energies) == pytest.approx(sum(loud[path].energies), rel=1e-3)
