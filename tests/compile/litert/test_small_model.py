"""The small U-Net through the whole backend: placed, lowered, audited, proved; and what a wrong file gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from quad.build.build import STAGES
from quad.compile.artifact import Artifact
from quad.compile.backend import BackendRequest, CompileContext, open_backend
from quad.compile.compiler import Compiler
from quad.compile.graph_specs import sinusoid_of, unet_spec
from quad.compile.litert.audit import Audit, audit
from quad.compile.litert.flatbuffer import read_operators, read_tensors, serialize
from quad.compile.litert.interpreter import TfliteRunner
from quad.compile.litert.proof import Proof
from quad.compile.litert.rules import lower
from quad.compile.litert.stored_weights import stored_weights
from quad.compile.litert.tflite_model import Tensor, TfliteModel
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, host_inputs, integer_feeds, lower_layers, place_integers
from quad.compile.targets import load_target
from quad.core.chips import ACCEPTED, CPU, EMULATED, NOT_COMPILED, RUNS_ON_CPU, of_all
from quad.core.component_call import ComponentCall
from quad.core.decibels import array_sqnr_db
from quad.core.errors import BackendError
from quad.core.ports import Ports
from quad.core.profile import Profile
from quad.core.progress import StageClock, silent
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balanced_inputs, integer_slots
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.quantize.encodings.rules import RULES, Rule, signed_rules, with_eight_bit
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, byte_weights, unify

TARGET = load_target("litert")


@dataclass(frozen=True)
class Small:
    """The small U-Net's profile, slots and calls."""

    profile: Profile
    table: SlotTable
    calls: list[ComponentCall]


@pytest.fixture(scope="module")
def statistics(tiny: Any) -> Statistics:
    feeds = [Feed(a.name, partial(tiny.torch_output, slot_inputs(a, tiny.table))) for a in tiny.adapters]
    return observe({"unet": tiny.network}, feeds)


def profile_of(tiny: Any, statistics: Statistics, table: SlotTable, rules: tuple[Rule, ...]) -> Profile:
    options = UnifyOptions(int16_largest=TARGET.int16_largest, rules=signed_rules(rules))
    return unify(statistics, {"unet": weights_of(tiny.network)}, table, tiny.adapters, options)


@pytest.fixture(scope="module")
def small(tiny: Any, statistics: Statistics) -> Small:
    table = integer_slots(tiny.table, 16, TARGET.int16_largest)
    profile = profile_of(tiny, statistics, table, RULES)
    calls = [
        ComponentCall(
            source=adapter.name if adapter else "base",
            inputs=tiny.inputs,
            slots=balanced_inputs(adapter, tiny.table) if adapter else slot_inputs(None, tiny.table),
        )
        for adapter in (None, *tiny.adapters)
    ]
    return Small(profile, table, calls)


def compiled(tiny: Any, small: Small, profile: Profile, table: SlotTable, scratch: Path, soc: tuple[str, ...] = ()) -> Artifact:
    context = CompileContext(
        target=TARGET, profile=profile, slots=table, clock=StageClock(STAGES, silent), scratch=scratch, calls=small.calls,
        sinusoid=sinusoid_of(tiny.base),
    )  # fmt: skip
    compiler = Compiler(open_backend(BackendRequest(TARGET, scratch / "unused", {"soc": soc})), context)
    model = run_passes(tiny.graph.clone(), passes_before(TARGET.passes))
    return compiler.placed(model, unet_spec(tiny.base, tiny.table), unobserved)


@pytest.fixture(scope="module")
def placed(tiny: Any, small: Small) -> IntegerGraph:
    profile = small.profile.component("unet")
    model = lower_layers(run_passes(tiny.graph.clone(), passes_before(TARGET.passes)), profile, TARGET, unobserved)
    return place_integers(model, profile, host_inputs(small.calls, sinusoid_of(tiny.base)), TARGET, unobserved)


@pytest.fixture(scope="module")
def lowered(placed: IntegerGraph) -> TfliteModel:
    return lower(placed.model)


def test_the_files_of_a_component(tiny: Any, small: Small, tmp_path: Path) -> None:
    artifact = compiled(tiny, small, small.profile, small.table, tmp_path)
    component = artifact.write(tmp_path / "bundle" / "unet")
    assert component.file == "unet/model.tflite"
    assert set(component.data_files) == {"unet/ports.json", "unet/audit.json"}
    assert set(artifact.agreement_db) == {"base", "transform", "removal"}
    assert min(artifact.agreement_db.values()) > 55
    audited = msgspec.json.decode((tmp_path / "bundle/unet/audit.json").read_bytes(), type=Audit)
    assert audited.widened == ()
    assert sum(audited.profile.values()) == len(small.profile.component("unet"))
    assert 0 < len(audited.fixed_scale) < 30
    ports = msgspec.json.decode((tmp_path / "bundle/unet/ports.json").read_bytes(), type=Ports)
    assert set(ports.inputs) == {"sample", "timestep", "encoder_hidden_states"}
    assert {port.dtype for port in (*ports.inputs.values(), *ports.outputs.values())} == {"int16"}


def test_the_same_with_8_bits_at_every_site(tiny: Any, small: Small, statistics: Statistics, tmp_path: Path) -> None:
    """Attention's too, whose V is turned after its change of encoding."""
    profile = profile_of(tiny, statistics, small.table, with_eight_bit(statistics.sites["unet"]))
    artifact = compiled(tiny, small, profile, small.table, tmp_path)
    assert min(artifact.agreement_db.values()) > 20
    audited = msgspec.json.decode((tmp_path / "unet/audit.json").read_bytes(), type=Audit)
    assert audited.widened == ()
    assert sum(audited.profile.values()) == len(profile.component("unet"))


def test_a_chip_gets_a_file_of_its_own_and_is_said_no_more_of_than_was_done(tiny: Any, small: Small, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    artifact = compiled(tiny, small, small.profile, small.table, tmp_path, ("SM8750", "MT6993"))
    assert artifact.chips == {CPU: RUNS_ON_CPU, "SM8750": EMULATED, "MT6993": NOT_COMPILED}
    assert set(artifact.write(tmp_path / "bundle" / "unet").data_files) == {"unet/ports.json", "unet/audit.json", "unet/SM8750.tflite"}
    assert {name for name in artifact.agreement_db if name.endswith(" on SM8750")} == {
        f"{source} on SM8750" for source in ("base", "transform", "removal")
    }
    assert of_all([artifact.chips, {**artifact.chips, "SM8750": ACCEPTED}])["SM8750"] == ACCEPTED


def test_inputs_are_the_graph_s_own_in_their_order_and_layout(small: Small, placed: IntegerGraph, lowered: TfliteModel) -> None:
    inputs = [lowered.tensors[index] for index in lowered.inputs]
    assert [tensor.name for tensor in inputs] == [value.name for value in placed.model.graph.inputs]
    shapes = {tensor.name: tensor.shape for tensor in inputs}
    assert {name: shapes[name] for name in small.table.input_shapes()} == small.table.input_shapes()
    assert [lowered.tensors[index].name for index in lowered.outputs] == ["out_sample"]


def test_weights_of_8_bits_are_read_back_as_the_layers_have_them(tiny: Any, small: Small, lowered: TfliteModel) -> None:
    profile, weights = small.profile.component("unet"), weights_of(tiny.network)
    expected = {name: profile[name].dequantize(profile[name].quantize(array)) for name, array in weights.items() if profile[name].bits == 8}
    stored = stored_weights(serialize(lowered), {name: array.shape for name, array in weights.items()})
    assert len(stored) < len(weights)  # those of 16 bits are not told
    assert stored.keys() == expected.keys()
    assert any(array.ndim == 4 and array.shape[2:] == (3, 3) for array in stored.values())
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name], array, name)


def test_slots_stay_operands_of_products(small: Small, lowered: TfliteModel) -> None:
    slots = {index for index in lowered.inputs if lowered.tensors[index].name in small.table.input_shapes()}
    readers = {node.kind for node in lowered.operators if slots & set(node.inputs)}
    assert readers <= {"BATCH_MATMUL", "TRANSPOSE", "RESHAPE"}
    assert not any(node.kind == "CONV_2D" and slots & set(node.inputs) for node in lowered.operators)


def test_a_zero_adapter_is_the_base_and_a_after_b_is_a(small: Small, placed: IntegerGraph, lowered: TfliteModel, tiny: Any) -> None:
    calls = host_inputs(small.calls, sinusoid_of(tiny.base))
    feeds = integer_feeds(placed, calls, small.profile.component("unet"))
    runner = TfliteRunner(serialize(lowered), "unet", delegates=False)
    first, second, again = runner.run(feeds["transform"]), runner.run(feeds["removal"]), runner.run(feeds["transform"])
    assert (first == again).all()
    assert (first != second).any()


@pytest.mark.parametrize("weights", [True, False], ids=["dynamic-w8", "float"])
def test_graphs_of_floats(weights: bool, tiny: Any, small: Small, tmp_path: Path) -> None:
    encodings = byte_weights({"unet": weights_of(tiny.network)}, UnifyOptions()) if weights else {}
    artifact = compiled(tiny, small, Profile(encodings=encodings, mode="float"), tiny.table, tmp_path)
    assert min(artifact.agreement_db.values()) > (30 if weights else 80)
    content = (tmp_path / "unet" / "model.tflite").read_bytes()
    integers = {name for name, tensor in read_tensors(content).items() if tensor.dtype == "int8"}
    assert len(integers) == len(encodings.get("unet", {}))
    runner = TfliteRunner(content, "unet", delegates=True)
    call = host_inputs(small.calls, sinusoid_of(tiny.base))[1]
    expected = tiny.torch_output(slot_inputs(tiny.adapters[0], tiny.table))
    assert array_sqnr_db(expected, runner.run(call.feed)) > (25 if weights else 80)


def _with_scale(model: TfliteModel, name: str, factor: float) -> bytes:
    """The file with another scale of one tensor."""

    def wrong(tensor: Tensor) -> Tensor:
        if tensor.name != name or tensor.encoding is None:
            return tensor
        scale = tuple(s * factor for s in tensor.encoding.scale)
        return replace(tensor, encoding=msgspec.structs.replace(tensor.encoding, scale=scale))

    return serialize(replace(model, tensors=tuple(map(wrong, model.tensors))))


def test_a_scale_that_is_not_the_profile_s_is_refused(small: Small, placed: IntegerGraph, lowered: TfliteModel) -> None:
    profile = small.profile.component("unet")
    slot = next(iter(small.table.input_shapes()))
    edge = next(lowered.tensors[node.outputs[0]].name for node in lowered.operators if node.kind == "CONV_2D")
    weight = next(lowered.tensors[node.inputs[1]].name for node in lowered.operators if node.kind == "CONV_2D")
    for name in (slot, weight, edge):
        with pytest.raises(BackendError, match=rf"tensor {name}"):
            audit(_with_scale(lowered, name, 1.5), placed.model.graph, profile)


def test_a_file_that_computes_otherwise_is_refused_by_its_first_tensor(
    small: Small, placed: IntegerGraph, lowered: TfliteModel, tiny: Any
) -> None:
    feeds = integer_feeds(placed, host_inputs(small.calls, sinusoid_of(tiny.base)), small.profile.component("unet"))
    layer = next(node for node in lowered.operators if node.kind == "FULLY_CONNECTED" and "to_q" in lowered.tensors[node.inputs[1]].name)
    content = _with_scale(lowered, lowered.tensors[layer.inputs[1]].name, 0.5)
    proof = Proof(name="unet", content=content, placed=placed.model, output=next(iter(placed.ports.outputs.values())), delegates=False,
                  limit_db=55.0)  # fmt: skip
    first = lowered.tensors[layer.outputs[0]].name
    with pytest.raises(BackendError, match=rf"unet on LiteRT with base.*first to differ is tensor {first}"):
        proof.agreement(feeds)


def test_operators_are_those_that_vendors_take(lowered: TfliteModel) -> None:
    kinds = {kind for kind, _, _ in read_operators(serialize(lowered))}
    assert kinds <= {
        "ADD", "BATCH_MATMUL", "CONCATENATION", "CONV_2D", "FULLY_CONNECTED", "GELU", "LOGISTIC", "MEAN", "MUL", "PAD", "QUANTIZE", "RELU",
        "RESHAPE", "RSQRT", "SLICE", "SOFTMAX", "STRIDED_SLICE", "SUB", "TRANSPOSE",
    }  # fmt: skip
    picture = [node for node in lowered.operators if node.kind == "LOGISTIC"]
    assert all(len(lowered.tensors[node.outputs[0]].shape) <= 3 for node in picture)
    assert max(len(tensor.shape) for tensor in lowered.tensors) == 4
