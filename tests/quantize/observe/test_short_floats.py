"""Statistics in bf16: the choice, what it changes in ranges, and that nothing of it stays behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quad.core.errors import CompatibilityError, UsageError
from quad.core.float_type import AUTO, BF16, F32
from quad.model.base.modules import share_copy
from quad.model.slots.layers import layers_of
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.short_floats import LARGE, check_statistics_type, choose_statistics_type, computing_in, weights_in
from quad.quantize.observe.statistics_file import source_piece


def test_the_choice_is_bf16_for_a_large_denoiser_where_it_is_offered() -> None:
    choice = partial(choose_statistics_type, AUTO)
    assert [choice(offered=offered, weights=weights) for offered in (True, False) for weights in (LARGE, LARGE - 1)] == [
        BF16,
        F32,
        F32,
        F32,
    ]
    assert {choose_statistics_type(asked, offered=True, weights=weights) for asked in (F32,) for weights in (0, LARGE)} == {F32}
    assert choose_statistics_type(BF16, offered=True, weights=0) == BF16


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="f16"):
        check_statistics_type("f16", offered=True)
    with pytest.raises(CompatibilityError, match="f32"):
        check_statistics_type(BF16, offered=False)
    for asked, offered in ((AUTO, False), (F32, False), (BF16, True)):
        check_statistics_type(asked, offered=offered)


def _call(tiny: Any, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    inputs = [torch.randn_like(value) if value.ndim > 1 else value for value in tiny.inputs]
    answer: torch.Tensor = tiny.network(*inputs, {})
    return answer


def _observed(tiny: Any, float_type: str, **how: Any) -> Statistics:
    feeds = [Feed(f"source {seed % 2}", partial(_call, tiny, seed)) for seed in range(4)]
    return observe({"unet": tiny.network}, feeds, float_type=float_type, **how)


def test_ranges_move_little(tiny: Any) -> None:
    long, short = (_observed(tiny, float_type, together=False) for float_type in (F32, BF16))
    assert long.sites["unet"].keys() == short.sites["unet"].keys()
    spans = {
        name: [(density.high - density.low) for density in (statistics.density("unet", name) for statistics in (long, short))]
        for name in long.sites["unet"]
    }
    moved = [abs(b / a - 1.0) for a, b in spans.values() if a > 0.0]
    assert 0.0 < max(moved) < 0.05
    assert np.median(moved) < 0.01


def test_networks_have_their_own_weights_and_types_again(tiny: Any) -> None:
    before = {path: layer.weight for path, layer in layers_of(tiny.network).items()}
    with torch.no_grad():
        expected = _call(tiny, 0)

    def stopped() -> None:
        with weights_in(BF16, [tiny.network]), computing_in(BF16):
            assert {layer.weight.dtype for layer in layers_of(tiny.network).values()} == {torch.bfloat16}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert all(layer.weight is before[path] for path, layer in layers_of(tiny.network).items())
    with torch.no_grad():
        assert torch.equal(_call(tiny, 0), expected)


@pytest.mark.parametrize("room", [0, 30_000, 10**9])
def test_weights_held_in_half_precision_answer_the_same_whether_they_are_converted_once_or_at_each_call(
    tiny: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quad.quantize.observe.short_floats.BESIDE_BYTES", room)
    network = share_copy(tiny.network)
    layers = list(layers_of(network).values())
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight.half(), requires_grad=False)
    with torch.no_grad(), computing_in(BF16):
        expected = network(*tiny.inputs, {})
        with weights_in(BF16, [network]):
            short = sum(2 * layer.weight.numel() for layer in layers if layer.weight.dtype == torch.bfloat16)
            assert torch.equal(network(*tiny.inputs, {}), expected)
    assert short <= room
    assert (short > 0) == (room > 0)
    assert {layer.weight.dtype for layer in layers} == {torch.float16}


def test_another_network_that_shares_the_weights_does_not_see_it(tiny: Any) -> None:
    layer = next(layer for layer in layers_of(tiny.network).values() if isinstance(layer, nn.Linear))
    other = nn.Linear(layer.in_features, layer.out_features)
    other.weight = layer.weight
    with weights_in(BF16, [tiny.network]):
        assert other.weight.dtype == torch.float32
        assert layer.weight.dtype == torch.bfloat16


def test_an_observation_is_the_same_however_often_it_is_made(tiny: Any) -> None:
    pieces = [source_piece(_observed(tiny, BF16, together=False), "source 1", 2, 4) for _ in range(2)]
    assert pieces[0][0] == pieces[1][0]
    assert all(np.array_equal(pieces[0][1][name], pieces[1][1][name]) for name in ("counts", "sums"))
