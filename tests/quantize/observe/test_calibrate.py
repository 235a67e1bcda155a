"""Calibration runs the tasks as the device does, reaches every site, keeps adapters apart, and refuses gaps in its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.core.errors import BackendError, InputError, UsageError
from quad.core.sampling import AdapterDefaults
from quad.lora.fit.integers import quantize_adapter
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_network
from quad.quantize.correct.simulate import simulated
from quad.quantize.observe.calibrate import CalibrationOptions, CalibrationSample, calibrate, component_networks, plan_samples
from quad.quantize.observe.torch_session import torch_sessions
from quad.quantize.profile.pooled_profile import unify


def test_every_site_of_every_component_is_reached_by_every_source(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    networks = component_networks(base, tiny.network)
    statistics = calibrate(base, networks, tiny.table, tiny.adapters, samples)
    profile = unify(statistics, {c: weights_of(n) for c, n in networks.items()}, tiny.table, tiny.adapters)
    for component, network in networks.items():
        sites = {m.name for m in network.modules() if type(m).__name__ == "Site"}
        assert sites
        assert sites == set(statistics.sites[component])
        assert sites < set(profile.component(component))
        for name, by_source in statistics.sites[component].items():
            assert set(by_source) == {"faint", "loud"} if name.endswith("lora_mid") else {"base", "faint", "loud"}
    for adapter in (None, *tiny.adapters):
        assert len(quantize_adapter(adapter, tiny.table, profile)) == 4


def test_all_four_components_simulate(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    networks = component_networks(base, tiny.network)
    statistics = calibrate(base, networks, tiny.table, tiny.adapters, samples)
    profile = unify(statistics, {c: weights_of(n) for c, n in networks.items()}, tiny.table, tiny.adapters)
    sessions = torch_sessions(base, networks, tiny.table)
    rng = np.random.default_rng(1)
    feeds = {
        "text_encoder": {"input_ids": np.array([[2, 3, 0, 0, 0, 0]])},
        "vae_encoder": {"image": rng.uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)},
        "vae_decoder": {"latent": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)},
    }
    for component, feed in feeds.items():
        true = sessions[component].run(feed)
        with simulated(networks[component], profile, component):
            found = sessions[component].run(feed)
        error = np.square(found - true).mean() / np.square(true).mean()
        assert 0 < error < 1e-3


def test_it_is_repeatable_and_depends_on_the_seed(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    networks = component_networks(base, tiny.network)
    low = [
        calibrate(base, networks, tiny.table, tiny.adapters, samples, CalibrationOptions(seed=seed)).density("unet", "conv_in.in").low
        for seed in (0, 0, 1)
    ]
    assert low[0] == low[1] != low[2]


def test_an_adapter_without_a_sample_is_refused(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    networks = component_networks(base, tiny.network)
    with pytest.raises(InputError, match=r"^calibration: expected a sample for adapter 'faint', found none; [^\n]+$"):
        calibrate(base, networks, tiny.table, tiny.adapters, samples[:2])
    with pytest.raises(InputError, match=r"^calibration: expected adapter 'faint', which a sample needs, found no such adapter; [^\n]+$"):
        calibrate(base, networks, tiny.table, tiny.adapters[1:], samples)
    with pytest.raises(InputError, match="at least one sample"):
        calibrate(base, networks, tiny.table, tiny.adapters, [])


def test_a_sample_may_name_an_adapter_that_has_no_task(base: Base, make_adapter: Callable[..., FloatAdapter], tiny: Any) -> None:
    ink = make_adapter("ink", 7, 2, (0.1, 0.1))
    network, table = slot_network(base.unet, [ink])
    statistics = calibrate(
        base, component_networks(base, network), table, [ink], [CalibrationSample(task="text-to-image", prompt="a", adapter="ink")]
    )
    assert set(statistics.sites["unet"]["conv_in.in"]) == {"ink"}


@pytest.mark.parametrize(("steps", "calls"), [(None, 2), (1, 1), (5, 2)])
def test_a_sample_may_take_fewer_steps_than_its_task(base: Base, tiny: Any, steps: int | None, calls: int) -> None:
    heard: list[str] = []
    options = CalibrationOptions(call_hook=lambda component, _inputs, _answer: heard.append(component))
    networks = component_networks(base, tiny.network)
    calibrate(base, networks, tiny.table, (), [CalibrationSample(task="text-to-image", prompt="a", steps=steps)], options)
    assert heard.count("unet") == calls


def test_a_walk_that_begins_at_a_picture_encodes_it(base: Base, tiny: Any, samples: list[CalibrationSample]) -> None:
    task = msgspec.structs.replace(base.tasks["text-to-image"], strength=0.5)
    begun = replace(base, tasks={"transform": task})
    heard: list[str] = []
    options = CalibrationOptions(call_hook=lambda component, _inputs, _answer: heard.append(component))
    picture = next(sample.image for sample in samples if sample.image is not None)
    calibrate(
        begun,
        component_networks(base, tiny.network),
        tiny.table,
        (),
        [CalibrationSample(task="transform", prompt="a", image=picture)],
        options,
    )
    assert (heard.count("unet"), heard.count("vae_encoder"), heard.count("vae_decoder")) == (1, 1, 1)


def test_an_unknown_task_is_refused_with_the_list(base: Base, tiny: Any) -> None:
    with pytest.raises(UsageError, match="expected a task of text-to-image, sketch, removal, found 'dream'"):
        calibrate(base, component_networks(base, tiny.network), tiny.table, (), [CalibrationSample(task="dream", prompt="a")])


def test_an_adapter_is_calibrated_as_it_is_meant_to_be_run(base: Base, tiny: Any) -> None:
    fast = replace(base, adapter_defaults={"loud": AdapterDefaults(sampler="lcm:3", guidance=1.0)})
    names = [adapter.name for adapter in tiny.adapters]
    samples = [CalibrationSample(task="text-to-image", prompt="a", adapter=name) for name in (None, *names)]
    planned = {name: (spec.sampler.kind, spec.sampler.steps, spec.guidance) for _, spec, name in plan_samples(fast, samples, tiny.adapters)}
    assert planned == {None: ("ddim", 2, 3.0), "loud": ("lcm", 3, 1.0), "faint": ("ddim", 2, 3.0)}


def test_a_session_says_which_input_is_wrong(base: Base, tiny: Any) -> None:
    session = torch_sessions(base, component_networks(base, tiny.network), tiny.table)["unet"]
    with pytest.raises(BackendError, match="found no sample"):
        session.run({})
    with pytest.raises(BackendError, match=r"found elsewhere\.lora_A"):
        session.bind({"elsewhere.lora_A": np.zeros(1, np.float32)})
