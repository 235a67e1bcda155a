"""Observation: exact extremes, means and counts, nothing left behind, bad values named."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quad.core.errors import InputError
from quad.core.tensor_names import Role, role_of
from quad.model.slots.attention import add_sites
from quad.quantize.observe import side_by_side
from quad.quantize.observe.observers import Feed, observe


def sited() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    add_sites(network)
    return network


def test_extremes_counts_and_means_are_exact() -> None:
    network, batches = sited(), [torch.randn(2, 3, 4, 4) * k for k in (1, 10, 0.1)]
    statistics = observe({"net": network}, [Feed("one", partial(network, batch)) for batch in batches])
    everything = torch.cat(batches)
    found = statistics.sites["net"]["0.in"]["one"]
    assert (found.histogram.low, found.histogram.high) == (everything.min().item(), everything.max().item())
    assert found.histogram.total == found.histogram.counts.sum() == everything.numel()
    np.testing.assert_allclose(found.channel_mean(), everything.mean(dim=(0, 2, 3)).numpy(), atol=1e-5)
    assert statistics.sites["net"]["3.in"]["one"].channel_mean().shape == (64,)


def test_channels_have_means_where_a_bias_is_corrected(tiny: Any) -> None:
    statistics = observe({"unet": tiny.network}, [Feed("x", partial(tiny.network, *tiny.inputs, tiny.slots(tiny.adapters[0])))])
    sites = {name: by_source["x"] for name, by_source in statistics.sites["unet"].items()}
    assert {role_of(name) for name in sites} > {Role.INPUT, Role.PROBABILITY, Role.LORA_MID}
    for name, site in sites.items():
        assert (len(site.channel_mean()) > 0) == (role_of(name) in (Role.INPUT, Role.SKIP_INPUT))


def test_sources_are_kept_apart_and_weigh_the_same() -> None:
    network = sited()
    feeds = [Feed("few", partial(network, torch.ones(1, 3, 4, 4))), *[Feed("many", partial(network, torch.zeros(1, 3, 4, 4)))] * 3]
    statistics = observe({"net": network}, feeds)
    assert set(statistics.sites["net"]["0.in"]) == {"few", "many"}
    np.testing.assert_allclose(statistics.channel_mean("net", "0.in"), 0.5)
    assert statistics.density("net", "0.in", ["few"]).low == 1.0


def test_sites_are_left_as_they_were_even_after_an_error() -> None:
    network = sited()

    def fail() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        observe({"net": network}, [Feed("one", fail)])
    assert all(site.transform is None for site in add_sites(network).values())


def test_memory_does_not_grow_with_the_number_of_feeds() -> None:
    network = sited()

    def size(n: int) -> int:
        statistics = observe({"net": network}, (Feed("one", partial(network, torch.randn(1, 3, 4, 4))) for _ in range(n)))
        return sum(s["one"].histogram.counts.nbytes for s in statistics.sites["net"].values())

    assert size(1) == size(20)


def test_values_that_are_not_finite_name_the_adapter_and_the_site() -> None:
    network = sited()
    with pytest.raises(InputError, match=r"^calibration of net with 'ink', 0.in: expected finite values, found NaN or Inf; [^\n]+$"):
        observe({"net": network}, [Feed("ink", partial(network, torch.full((1, 3, 4, 4), torch.nan)))])


def test_feeds_side_by_side_give_what_one_after_the_other_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    network, threads = sited(), torch.get_num_threads()
    batches = [torch.randn(1, 3, 4, 4) * 10.0**k for k in range(-3, 3)]
    feeds = [Feed("even" if index % 2 else "odd", partial(network, batch)) for index, batch in enumerate(batches)]
    alone, order = observe({"net": network}, feeds, together=False), []
    monkeypatch.setattr(side_by_side, "default_threads", lambda: 3)
    torch.set_num_threads(1)
    try:
        together = observe({"net": network}, feeds, done=order.append)
    finally:
        torch.set_num_threads(threads)
    assert order == feeds
    for name in ("0.in", "3.in"):
        for source in ("even", "odd"):
            one, other = alone.sites["net"][name][source], together.sites["net"][name][source]
            assert one.histogram.fields == other.histogram.fields
            assert (one.histogram.counts == other.histogram.counts).all()
            np.testing.assert_array_equal(one.channel_mean(), other.channel_mean())


def test_observing_changes_no_output(tiny: Any) -> None:
    slots, seen = tiny.slots(tiny.adapters[0]), []
    observe({"unet": tiny.network}, [Feed("x", lambda: seen.append(tiny.network(*tiny.inputs, slots)))])
    assert torch.equal(seen[0], tiny.network(*tiny.inputs, slots))
