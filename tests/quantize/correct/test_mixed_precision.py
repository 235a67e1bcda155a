"""Ranking: damage is of one tensor alone, sites of one tensor go together, and the careful ones go last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from quad.build.fixed_threads import fixed_threads
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import InputError
from quad.lora.fit.integers import balanced_inputs
from quad.quantize.correct import mixed_precision
from quad.quantize.correct.mixed_precision import SiteDamage, eight_bit_sites, rank_sites
from quad.quantize.encodings.fake_quantize import FakeQuantizer
from quad.quantize.encodings.rules import with_eight_bit
from quad.quantize.observe import side_by_side
from quad.quantize.observe.probes import Probe
from quad.quantize.observe.side_by_side import one_lane
from quad.quantize.profile.pooled_profile import UnifyOptions, unify


@pytest.fixture(scope="module")
def probes(tiny: Any) -> dict[str, list[Probe]]:
    sample, _, hidden = tiny.inputs

    def probe(source: str, t: float, rows: int) -> Probe:
        inputs = {"sample": sample[:rows].numpy(), "timestep": np.array([t], np.float32), "encoder_hidden_states": hidden[:rows].numpy()}
        return Probe(source=source, task="task", run=0, inputs=inputs, sigma_t=0.5)

    return {source: [probe(source, t, rows) for t, rows in ((900.0, 1), (500.0, 2))] for source in ("base", "loud")}


@pytest.fixture(scope="module")
def slots(tiny: Any) -> dict[str, dict[str, np.ndarray]]:
    return {adapter.name: balanced_inputs(adapter, tiny.table) for adapter in tiny.adapters}


@pytest.fixture(scope="module")
def encodings(tiny: Any) -> dict[str, Encoding]:
    sites = tiny.statistics.sites["unet"]
    profile = unify(tiny.statistics, {}, tiny.table, tiny.adapters, UnifyOptions(rules=with_eight_bit(sites)))
    return {name: profile.component("unet")[name] for name in sites}


@pytest.fixture(scope="module")
def ranking(tiny: Any, encodings: Any, probes: Any, slots: Any) -> tuple[SiteDamage, ...]:
    return rank_sites(tiny.network, encodings, probes, slots)


def test_every_site_is_ranked_once_the_careful_ones_last(ranking: Any, encodings: Any) -> None:
    assert sorted(site.name for site in ranking) == sorted(encodings)
    assert {encodings[site.name].bits for site in ranking} == {8}
    for last in (False, True):
        damages = [site.damage for site in ranking if site.turn == last]
        assert damages == sorted(damages)
        assert 0 < damages[-1] < np.inf
    assert [site.turn for site in ranking] == sorted(site.turn for site in ranking)


def test_operands_of_an_integer_product_go_together_with_the_damage_of_both(
    tiny: Any, encodings: Any, probes: Any, slots: Any, ranking: Any
) -> None:
    """Among A x by damage, before the first and last layers."""
    alone = {site.name: site.damage for site in ranking}
    together = rank_sites(tiny.network, encodings, probes, slots, products=True)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1"
    for pair in ("qk", "pv"):
        names = {f"{path}.{role}" for role in pair}
        first = next(place for place, site in enumerate(together) if site.name in names)
        assert {site.name for site in together[first : first + 2]} == names
        assert together[first].damage == pytest.approx(sum(alone[name] for name in names))
    attention = [site.turn for site in together if site.name.startswith(f"{path}.") and site.name.count(".") == path.count(".") + 1]
    assert set(attention) == {1}
    assert {site.turn for site in together if site.name.endswith(".lora_mid")} <= {1}
    assert {site.turn for site in together if site.name.startswith("conv_in.")} <= {2}


def test_damage_is_what_that_site_alone_does(tiny: Any, ranking: Any, encodings: Any, probes: Any, slots: Any) -> None:
    """Rounded and run, against what gradients say; the first source is asked at its first call, the second at its second one's last row."""
    name = "mid_block.resnets.0.conv1.in"
    quantizer, found = FakeQuantizer(encodings[name]), []
    for k, (source, calls) in enumerate(probes.items()):
        tensors = {key: torch.from_numpy(values) for key, values in slots.get(source, {}).items()}
        inputs = calls[k].row(k).tensors()
        true = tiny.network(*inputs, tensors)
        tiny.network.sites[name].transform = quantizer
        rounded = tiny.network(*inputs, tensors)
        tiny.network.sites[name].transform = None
        found.append(float((rounded - true).square().sum() / true.square().sum()))
    (ranked,) = rank_sites(tiny.network, {name: encodings[name]}, probes, slots, draws=400)
    assert ranked.damage == pytest.approx(np.mean(found), rel=4 * np.sqrt(2 / 400))


def test_draws_are_shared_and_every_source_has_one(
    tiny: Any, encodings: Any, probes: Any, slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(mixed_precision, "_damages", lambda *given: asked.append(len(given[-1])) or {})
    for draws in (1, 2, 5):
        rank_sites(tiny.network, encodings, probes, slots, draws)
    assert asked == [1, 1, 1, 1, 3, 2]


def test_sources_ranked_side_by_side_give_the_same_bits(tiny: Any, encodings: Any, probes: Any, slots: Any) -> None:
    with fixed_threads():
        with one_lane():
            alone = rank_sites(tiny.network, encodings, probes, slots)
        assert rank_sites(tiny.network, encodings, probes, slots) == alone


@pytest.mark.parametrize(("large", "lanes"), [(1, 1), (10**9, 2)])
def test_calls_of_a_large_network_are_held_one_at_a_time(
    tiny: Any, encodings: Any, probes: Any, slots: Any, monkeypatch: pytest.MonkeyPatch, large: int, lanes: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(side_by_side, "default_threads", lambda: 2)
    monkeypatch.setattr(mixed_precision, "LARGE", large)
    monkeypatch.setattr(mixed_precision, "_damages", lambda *_: seen.append(side_by_side.lanes()) or {})
    with fixed_threads():
        monkeypatch.setattr(mixed_precision, "together", lambda compute, pieces, _: list(map(compute, pieces)))
        rank_sites(tiny.network, encodings, probes, slots)
    assert set(seen) == {lanes}


def test_sites_of_one_tensor_are_one(ranking: Any) -> None:
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    damage = {site.name: site.damage for site in ranking}
    assert damage[f"{path}.to_q.in"] == damage[f"{path}.to_k.in"] == damage[f"{path}.to_v.in"] != damage[f"{path}.to_out.0.in"]


def test_a_coarser_encoding_does_more_damage(tiny: Any, encodings: Any, probes: Any, slots: Any, ranking: Any) -> None:
    name = "mid_block.resnets.0.conv1.in"
    coarse = encode_range(-100.0, 100.0, bits=8, signed=False, symmetric=False)
    (worse,) = rank_sites(tiny.network, {name: coarse}, probes, slots)
    assert worse.damage > 10 * next(site.damage for site in ranking if site.name == name)


def test_nothing_is_left_behind_and_no_probe_is_refused(tiny: Any, ranking: Any, encodings: Any) -> None:
    assert all(site.transform is None for site in tiny.network.sites.values())
    with pytest.raises(InputError, match=r"^site ranking: expected at least one probe, found none; give calibration samples$"):
        rank_sites(tiny.network, encodings, {}, {})


def test_shares() -> None:
    names = tuple("abcdefghij")
    assert eight_bit_sites(names, 0) == ()
    assert eight_bit_sites(names, 34) == ("a", "b", "c")
    assert eight_bit_sites(names, 100) == names


def test_gradients_of_all_readers_of_a_tensor_are_one(encodings: Any) -> None:
    """Two that cancel do no damage; two alike do four times that of one."""
    (encoding, *_), x = encodings.values(), torch.linspace(-1.0, 1.0, 7, requires_grad=True)

    def damage(signs: tuple[float, ...]) -> float:
        taps = mixed_precision._Taps()
        token = mixed_precision._TAPS.set(taps)
        try:
            output = sum(sign * mixed_precision._tapped(encoding, str(reader), x) for reader, sign in enumerate(signs))
        finally:
            mixed_precision._TAPS.reset(token)
        torch.autograd.backward(output, torch.ones_like(x))
        (tap,) = taps
        return tap.take()

    assert damage((1.0, -1.0)) == 0.0
    assert damage((1.0, 1.0)) == pytest.approx(4 * damage((1.0,)), rel=1e-5)
    assert damage((1.0,)) > 0.0


def test_a_tensor_that_has_left_memory_shares_its_tap_with_none(encodings: Any) -> None:
    (encoding, *_), taps = encodings.values(), mixed_precision._Taps()
    assert len({id(taps.of(torch.ones(3), encoding)) for _ in range(20)}) == 20


def test_a_single_draw_ranks_as_many_do(tiny: Any, encodings: Any, probes: Any, slots: Any) -> None:
    """One of each source, against 50."""
    one, many = ({site.name: site.damage for site in rank_sites(tiny.network, encodings, probes, slots, draws)} for draws in (2, 100))
    assert spearmanr([one[name] for name in encodings], [many[name] for name in encodings]).statistic > 0.98
