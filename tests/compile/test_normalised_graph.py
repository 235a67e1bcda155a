"""Graphs with normalised slots: the passes keep them, the graph is the simulated network, weights in the scales, one input of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from quad.build.smoke import relative_error
from quad.compile.export import export_graph
from quad.compile.graph_specs import sinusoid_of, unet_spec
from quad.compile.passes import passes_after, passes_before, run_passes, unobserved
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.placement.integer_graph import host_inputs, integer_feeds, lower_layers, place_integers, with_sinusoid
from quad.compile.placement.qdq import place_float, place_qdq
from quad.compile.qnn.htp import compile_htp
from quad.compile.targets import Target, load_target
from quad.core.component_call import ComponentCall
from quad.core.profile import Profile
from quad.core.slots import NORMALISED, SlotTable
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter, rescaled_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.model.slots.network import SlottedNetwork, slot_network
from quad.quantize.correct.simulate import simulated
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.engines.engine import open_engine
from tests.compile.placement.test_qdq import STATED_BOUND
from tests.compile.qnn.placed_htp import SOC, TARGET
from tests.small_model import Tiny

SCALES = "unet.lora_scales"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Normalised:
    """The tiny U-Net with normalised slots, exported once."""

    tiny: Tiny
    adapters: tuple[FloatAdapter, ...]
    network: SlottedNetwork
    table: SlotTable
    graph: ir.Model
    statistics: Statistics

    def output(self, slots: Arrays) -> NDArray[np.float32]:
        return run_torch(self.network, self.tiny, slots)

    def profile(self, table: SlotTable, **options: Any) -> Profile:
        return unify(self.statistics, {"unet": weights_of(self.network)}, table, self.adapters, UnifyOptions(**options))


def run_torch(network: SlottedNetwork, tiny: Tiny, slots: Arrays) -> NDArray[np.float32]:
    with torch.no_grad():
        inputs = [torch.from_numpy(values) for values in tiny.inputs.values()]
        return network(*inputs, {name: torch.from_numpy(values) for name, values in slots.items()}).numpy()


@pytest.fixture(scope="module")
def normalised(tiny: Tiny) -> Normalised:
    adapters = (*tiny.adapters, projections(tiny))
    network, table = slot_network(tiny.base.unet, adapters, mode=NORMALISED)
    graph = export_graph(network, unet_spec(tiny.base, table))
    feeds = [Feed(one.name, partial(run_torch, network, tiny, balanced_inputs(one, table))) for one in adapters]
    return Normalised(tiny, adapters, network, table, graph, observe({"unet": network}, feeds))


def projections(tiny: Tiny) -> FloatAdapter:
    """On the 1x1 convolutions around attention, which engines take for matmuls."""
    rng, weights = np.random.default_rng(7), {}
    for path, layer in tiny.base.unet.named_modules():
        if path.endswith("proj_out") and isinstance(layer, torch.nn.Conv2d):
            shapes = (3, layer.in_channels, 1, 1), (layer.out_channels, 3, 1, 1)
            weights[path] = LowRank(*(rng.normal(scale=0.2, size=shape).astype(np.float32) for shape in shapes))
    return FloatAdapter(name="projections", weights=weights, rank=3, digest="projections")


def times(slots: Arrays, weight: float) -> Arrays:
    return {**slots, SCALES: slots[SCALES] * np.float32(weight)}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_one_vector_is_handed_out_to_all_slots(normalised: Normalised) -> None:
    graph = normalised.graph.graph
    assert [value.name for value in graph.inputs][-1] == SCALES
    readers = [user.node for user in next(value for value in graph.inputs if value.name == SCALES).uses()]
    assert [(node.op_type, len(node.outputs)) for node in readers] == [("Split", len(normalised.table.slots))]


@pytest.mark.parametrize(("target", "bits"), [("cpu", 16), ("openvino", 8)])
def test_passes_keep_the_function_and_every_slot_input(target: str, bits: int, normalised: Normalised) -> None:
    """Scales go into B's DequantizeLinear, and the passes behind find the slots as if there were none."""
    table, tiny = integer_slots(normalised.table, bits), normalised.tiny
    profile = normalised.profile(table, lora_bits=bits)
    plain = place_qdq(normalised.graph.clone(), profile.component("unet"), table, without_passes(target)).model
    after = run_passes(plain.clone(), passes_after(load_target(target).passes))
    adapters = {one.name if one else "base": quantize_adapter(one, table, profile) for one in (*normalised.adapters, None)}
    report = check_contract(plain, after, ContractTrial(inputs=tiny.inputs, adapters=adapters, tolerance=1e-3, group=8), target)
    assert report.effects is not None
    assert report.effects[0] > 1e-4
    linear = sum(slot.kind == "linear" for slot in table.slots)
    assert 0 < linear < len(table.slots)
    assert operators(plain)["Mul"] - operators(after)["Mul"] == linear - 1  # one for all, before the Split
    makers = [node.inputs[1].producer() for node in after.graph if node.op_type == "DequantizeLinear"]
    assert sum(maker is not None and maker.op_type == "Split" for maker in makers) == linear
    shared = [node.inputs[0].producer() for node in after.graph if node.op_type == "Split"]
    assert any(maker is not None and maker.op_type == "Gemm" for maker in shared)  # down-projections of one x


def without_passes(target: str) -> Target:
    return msgspec.structs.replace(load_target(target), passes=(), integer=())


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_the_graph_is_the_simulated_network_at_any_weight(engine: str, normalised: Normalised, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    target = load_target({"ort": "cpu"}.get(engine, engine))
    table = integer_slots(normalised.table, 16)
    profile = normalised.profile(table)
    placed = place_qdq(normalised.graph.clone(), profile.component("unet"), table, target.for_profile(profile)).model
    ir.save(placed, tmp_path / "model.onnx")
    session = open_engine(engine, (), "w8a16").load(tmp_path / "model.onnx", 1)
    adapter = normalised.adapters[2 if engine == "openvino" else 1]
    bound = quantize_adapter(adapter, table, profile)
    with simulated(normalised.network, profile, "unet"):
        for weight in (1.0, 0.5, -1.0):
            session.bind(times(bound, weight))
            expected = normalised.output(dequantize_adapter(times(bound, weight), table, profile))
            assert relative_error(session.run(normalised.tiny.inputs), expected) <= STATED_BOUND
    outputs = []
    for slots in (quantize_adapter(None, table, profile), times(bound, 0.0), bound, times(bound, 0.0)):
        session.bind(slots)
        outputs.append(np.array(session.run(normalised.tiny.inputs)))
    np.testing.assert_array_equal(outputs[1], outputs[0])  # law 1
    np.testing.assert_array_equal(outputs[3], outputs[0])  # law 4
    assert np.abs(outputs[2] - outputs[0]).max() > 1e-3


def test_a_float_graph_scales_too(normalised: Normalised, tmp_path: Path) -> None:
    ir.save(place_float(normalised.graph.clone(), load_target("cpu").passes).model, tmp_path / "model.onnx")
    session = open_engine("ort", (), "float").load(tmp_path / "model.onnx", 1)
    adapter = normalised.tiny.adapters[0]
    session.bind(times(balanced_inputs(adapter, normalised.table), 2.0))
    expected = normalised.output(times(slot_inputs(adapter, normalised.table), 2.0))
    assert relative_error(session.run(normalised.tiny.inputs), expected) <= 1e-4


def test_the_chip_takes_the_graph_whole_with_integer_scales(normalised: Normalised, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from quad.compile.qnn.emulate import check_agreement

    tiny, table = normalised.tiny, integer_slots(normalised.table, 16, TARGET.int16_largest)
    profile = normalised.profile(table, integer_scales=True, int16_largest=TARGET.int16_largest)
    encodings, sinusoid = profile.component("unet"), sinusoid_of(tiny.base)
    given = {one.name if one else "base": rescaled_inputs(one, table, profile) for one in (None, *normalised.adapters)}
    calls = host_inputs([ComponentCall(source=name, inputs=tiny.inputs, slots=slots) for name, slots in given.items()], sinusoid)
    model = lower_layers(run_passes(normalised.graph.clone(), passes_before(TARGET.passes)), encodings, TARGET, unobserved)
    graph = with_sinusoid(place_integers(model, encodings, calls, TARGET, unobserved), sinusoid)
    scales = next(value for value in graph.model.graph.inputs if value.name == SCALES)
    assert scales.dtype == ir.DataType.INT16
    compiled = compile_htp(graph, tmp_path / "unet", SOC)
    assert (compiled.placement["on_cpu"], compiled.placement["partitions"]) == (0, 1)
    found = check_agreement(graph, tmp_path / "unet" / "model.onnx", SOC, integer_feeds(graph, calls, encodings))
    assert min(found.values()) > 35.0
