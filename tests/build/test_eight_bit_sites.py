"""8-bit sites on the way from the network to ONNX Runtime: the graph is the simulated network, with every step on (laws 1, 4, 9)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch

from quad.build.build import build
from quad.build.eight_bit_sites import MixedPrecision
from quad.build.request import BuildRequest
from quad.compile.export import export_graph
from quad.compile.graph_specs import unet_spec
from quad.compile.placement.qdq import place_qdq
from quad.compile.targets import load_target
from quad.core.decibels import relative_error
from quad.core.profile import Profile
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import dequantize_adapter, integer_slots, quantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.model.slots.network import SlottedNetwork, slot_network, slotted_as
from quad.model.slots.table import new_table
from quad.quantize.correct.simulate import simulated
from quad.quantize.correct.smooth import recording_channel_maxima
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.encodings.rules import keeps_16_bits
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.probes import Probe
from quad.quantize.profile.grouped_ranges import of_sources
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.engines.ort import OrtSession, session_options
from quad.runtime.pipeline import QuadPipeline
from tests.build.samples import SAMPLES, run

# One call, ORT against quantsim. A sum in another order may cross a rounding edge; the value then moves by one level of 255, and later
# 8-bit sites round what follows anew. Measured here: no edge is crossed, 0 exactly. On Toyland's U-Net: 2e-7 where none is, up to 0.027
# where one is, which is under the error that 8 bits make themselves (0.025 to 0.045; portrait more).
STATED_BOUND = 2e-2


@dataclass(frozen=True)
class Case:
    network: SlottedNetwork
    table: SlotTable
    mixed: MixedPrecision
    statistics: Statistics
    profile: Profile
    session: OrtSession
    inputs: dict[str, np.ndarray]

    def torch_output(self, slots: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(values) for name, values in slots.items()}
            return self.network(*map(torch.from_numpy, self.inputs.values()), tensors).numpy()


def sites_at(profile: Profile, bits: int) -> set[str]:
    encodings = profile.component("unet")
    return {name for name, encoding in encodings.items() if encoding.bits == bits and not name.endswith((".weight", ".lora_A", ".lora_B"))}


@pytest.fixture(scope="module", params=[60.0, 100.0])
def case(tiny: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    table = new_table({UNET: tiny.base.unet}, tiny.adapters, room=2)  # as a build has it, whose trace then serves
    network = slotted_as(tiny.base.unet, tiny.base.text_encoder, table).unet
    probes = {adapter.name: [Probe(source=adapter.name, task="task", run=0, inputs=tiny.inputs, sigma_t=0.5)] for adapter in tiny.adapters}
    mixed = MixedPrecision(
        network=network, table=table, adapters=tiny.adapters, quality=QualitySteps(), percent=request.param, probes=probes
    )
    assert mixed.needs_probes
    mixed.split()

    def call(slots: dict[str, np.ndarray]) -> object:
        return network(*map(torch.from_numpy, tiny.inputs.values()), {name: torch.from_numpy(values) for name, values in slots.items()})

    with recording_channel_maxima(network) as channels:
        for adapter in tiny.adapters:
            call(slot_inputs(adapter, table))
    mixed = replace(mixed, channels=channels).equalized()
    statistics = observe({"unet": network}, [Feed(a.name, partial(call, slot_inputs(a, table))) for a in mixed.adapters])
    options, slots = UnifyOptions(), integer_slots(table, 16)
    options = replace(options, rules=mixed.rules(statistics, options))
    profile = unify(statistics, {"unet": weights_of(network)}, slots, mixed.adapters, options)
    path = tmp_path_factory.mktemp("mixed") / "model.onnx"
    graph = export_graph(network, unet_spec(tiny.base, table))
    as_written = msgspec.structs.replace(load_target("cpu"), integer=())  # integer kernels: test_place_integers.py
    ir.save(place_qdq(graph, profile.component("unet"), slots, as_written).model, path)
    session = OrtSession(path, session_options(f"mixed:{request.param}", 1))
    return Case(network, slots, mixed, statistics, profile, session, tiny.inputs)


def test_the_share_is_kept_and_the_careful_sites_wait(case: Case) -> None:
    sites = case.statistics.sites["unet"]
    eight, sixteen = sites_at(case.profile, 8), sites_at(case.profile, 16)
    assert eight | sixteen == set(sites)
    assert len(eight) == round(len(sites) * case.mixed.percent / 100)
    if any(map(keeps_16_bits, eight)):
        assert all(map(keeps_16_bits, sixteen))


def test_the_text_can_stay_at_16_bits(case: Case) -> None:
    """At 8 bits everywhere else; an ablation of what handling the first token apart could bring."""
    kept = replace(case.mixed, quality=QualitySteps(text_at_16=True), percent=100.0)
    eight = {rule.name for rule in kept.rules(case.statistics, UnifyOptions()) if rule.bits == 8 and rule.component == "unet"}
    text = {name for name in case.statistics.sites["unet"] if name.endswith((".attn2.to_k.in", ".attn2.to_v.in"))}
    assert text
    assert eight == set(case.statistics.sites["unet"]) - text


def test_for_some_adapters_they_are_those_of_a_build_without_the_others(case: Case) -> None:
    some, (name, *_) = UnifyOptions(), (adapter.name for adapter in case.mixed.adapters)
    (alone,) = (adapter for adapter in case.mixed.adapters if adapter.name == name)
    call = partial(case.torch_output, slot_inputs(alone, case.mixed.table))
    statistics = observe({"unet": case.network}, [Feed(name, call)])
    expected = replace(case.mixed, adapters=(alone,), probes={name: case.mixed.probes[name]}).rules(statistics, some)
    assert case.mixed.of_sources({name}).rules(of_sources(case.statistics, {name}), some) == expected
    assert case.mixed.percent == 100.0 or expected != case.mixed.rules(case.statistics, some)


def test_the_graph_is_the_simulated_network(case: Case) -> None:
    for adapter in (None, *case.mixed.adapters):
        integers = quantize_adapter(adapter, case.table, case.profile)
        case.session.bind(integers)
        with simulated(case.network, case.profile, "unet"):
            expected = case.torch_output(dequantize_adapter(integers, case.table, case.profile))
        assert relative_error(case.session.run(case.inputs), expected) <= STATED_BOUND


def test_there_and_back_leaves_no_trace(case: Case) -> None:
    outputs = []
    for adapter in (None, *case.mixed.adapters, case.mixed.adapters[0], None):
        case.session.bind(quantize_adapter(adapter, case.table, case.profile))
        outputs.append(case.session.run(case.inputs))
    np.testing.assert_array_equal(outputs[1], outputs[3])
    np.testing.assert_array_equal(outputs[0], outputs[4])


def test_the_steps_change_nothing_in_float(tiny: Any, case: Case) -> None:
    """Split and equalized network with equalized adapters against the network as it came."""
    for before, after in zip(tiny.adapters, case.mixed.adapters, strict=True):
        expected = tiny.torch_output(slot_inputs(before, tiny.table))
        np.testing.assert_allclose(case.torch_output(slot_inputs(after, case.table)), expected, atol=2e-5)


def test_steps_can_be_switched_off(tiny: Any) -> None:
    off = QualitySteps(split_skips=False, equalize=False, rank_sites=False)
    for quality, percent in ((off, 60.0), (QualitySteps(), 0.0)):
        network, table = slot_network(tiny.base.unet, tiny.adapters)
        mixed = MixedPrecision(network=network, table=table, adapters=tiny.adapters, quality=quality, percent=percent)
        before = set(network.sites)
        mixed.split()
        assert set(network.sites) == before
        assert not mixed.needs_probes
        assert mixed.equalized() is mixed


def test_a_mixed_bundle_is_built_and_runs(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    made = build(BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="mixed:80"))
    kinds: Counter[str] = Counter(made.profile.encodings)
    assert kinds["uint8"] > kinds["uint16"] > 0
    assert max(error for cases in made.smoke.values() for error in cases.values()) < 0.2, made.smoke
    profile = msgspec.json.decode((made.bundle / "profile.json").read_bytes(), type=Profile)
    assert set(profile.gains) == {"unet"}
    assert (run(QuadPipeline.from_pretrained(made.bundle, threads=1), "transform") > 0).any()
