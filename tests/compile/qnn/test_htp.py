"""Laws of the HTP target on the tiny U-Net: every value an integer, the whole graph on the chip, the emulator agrees with the CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quad.build.build import BuildRequest, build
from quad.compile.artifact import save_graph
from quad.compile.passes import unobserved
from quad.compile.placement.edge_encodings import edge_encodings
from quad.compile.placement.edge_ranges import Range, float_edges, observe_edges
from quad.compile.placement.integer_graph import place_integers
from quad.compile.qnn.chips import SOCS, soc_named
from quad.compile.qnn.htp import compile_htp
from quad.core.component_call import ComponentCall
from quad.core.decibels import relative_error
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import BackendError, CompatibilityError, InputError, UsageError
from quad.lora.fit.integers import quantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.runtime.engines.ort import session_options
from tests.compile.qnn.placed_htp import SOC, TARGET, Placed, fed, lowered


def observed(placed: Placed, calls: Sequence[ComponentCall]) -> dict[str, Range]:
    return observe_edges(placed.floats, calls, placed.profile.component("unet"))


def test_every_value_between_operators_is_an_integer(placed: Placed) -> None:
    graph = placed.graph.model.graph
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} <= {
        ir.DataType.UINT16, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8}  # fmt: skip
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for value in node.inputs:
            made = value.producer() if value is not None and value.dtype == ir.DataType.FLOAT else None
            assert value is None or value.dtype != ir.DataType.FLOAT or value.const_value is not None or made.op_type == "DequantizeLinear"
        for value in node.outputs:
            assert {user.op_type for user in value.consumers()} <= {"QuantizeLinear"}, node.name


def test_every_reader_has_a_dequantizer_of_its_own(placed: Placed) -> None:
    """The compiler takes merged Q/DQ nodes, and may compute garbage (measured on the reference text encoder: 15 dB, unmerged 69 dB)."""
    for node in placed.graph.model.graph:
        if node.op_type == "DequantizeLinear":
            assert len(node.outputs[0].uses()) == 1, node.name


def test_the_second_operand_of_a_dynamic_product_is_signed_16_bits(placed: Placed) -> None:
    checked = 0
    for node in placed.graph.model.graph:
        if node.op_type in ("MatMul", "Conv"):
            integers = node.inputs[1].producer().inputs[0]
            if integers.const_value is None:
                assert integers.dtype == ir.DataType.INT16
                checked += 1
    assert checked >= 2 * len(placed.table.slots)


def test_the_placed_graph_is_near_the_float_network(tiny: Any, placed: Placed, tmp_path: Path) -> None:
    save_graph(placed.graph.model, tmp_path / "placed.onnx")
    session = ort.InferenceSession(str(tmp_path / "placed.onnx"), session_options("w8a16", 1), providers=["CPUExecutionProvider"])
    port = next(iter(placed.graph.ports.outputs.values()))
    errors = []
    for adapter, feed in zip((None, *tiny.adapters), fed(placed).values(), strict=True):
        errors.append(relative_error(port.decode(session.run(None, feed)[0]), tiny.torch_output(slot_inputs(adapter, tiny.table))))
    assert 1e-6 < min(errors) < max(errors) < 0.05, errors


def test_shape_operators_keep_their_encoding(placed: Placed) -> None:
    edges = edge_encodings(placed.floats.graph, placed.profile.component("unet"), observed(placed, placed.calls))
    kept = 0
    for node in placed.floats.graph:
        if node.op_type in ("Reshape", "Transpose") and node.inputs[0].name in edges and node.outputs[0].name in edges:
            assert edges[node.inputs[0].name] == edges[node.outputs[0].name]
            kept += 1
    assert kept > 10


def test_no_observed_value_is_clipped(placed: Placed) -> None:
    ranges = observed(placed, placed.calls)
    for name, (low, high) in ranges.items():
        if name in placed.graph.edges:
            e = placed.graph.edges[name]
            scale, zero = e.scale[0], e.zero_point[0]
            assert (e.qmin - zero - 0.51) * scale <= low, name
            assert high <= (e.qmax - zero + 0.51) * scale or high <= 1.0, name  # softmax and sigmoid: 1 itself is 65535/65536


def test_ranges_are_those_of_all_calls(placed: Placed) -> None:
    alone = [observed(placed, [call]) for call in placed.calls]
    together = observed(placed, placed.calls)
    for name, (low, high) in together.items():
        assert low == min(one[name][0] for one in alone)
        assert high == max(one[name][1] for one in alone)
    assert set(together) == {value.name for value in float_edges(placed.floats.graph)}


def test_no_calls_and_bad_weights_are_said(placed: Placed) -> None:
    with pytest.raises(InputError, match="at least one call"):
        observed(placed, [])
    call = placed.calls[0]
    broken = replace(call, inputs={**call.inputs, "sample": np.full_like(call.inputs["sample"], np.nan)})
    with pytest.raises(InputError, match="expected finite values"):
        observed(placed, [broken])


def test_a_profile_of_another_graph_is_refused(tiny: Any, placed: Placed) -> None:
    other = {
        **placed.profile.component("unet"),
        "elsewhere.weight": Encoding(bits=8, signed=True, symmetric=True, scale=(1.0,), zero_point=(0,)),
    }
    with pytest.raises(CompatibilityError, match=r"profile: expected only tensors of the graph, found 1 others, first elsewhere\.weight"):
        lowered(tiny, other)


def test_eight_bit_sites_are_computed_in_eight_bits(tiny: Any, placed: Placed) -> None:
    """Reads u8, gives u8, and the edge has 16 bits again; all other readers of the edge keep 16."""
    own = dict(placed.profile.component("unet"))
    names = [name for name in own if name.endswith("conv1.in")]
    own.update({name: encode_range(-4.0, 4.0, bits=8, signed=False, symmetric=False) for name in names})
    graph = place_integers(lowered(tiny, own), own, placed.calls, TARGET, unobserved).model.graph
    eight = [node for node in graph if node.op_type == "Conv" and node.inputs[0].producer().inputs[0].dtype == ir.DataType.UINT8]
    assert len(eight) == len(names) > 0
    for node in eight:
        first = node.outputs[0].consumers()
        assert [one.op_type for one in first] == ["QuantizeLinear"]
        assert first[0].outputs[0].dtype == ir.DataType.UINT8
        last = first[0].outputs[0].consumers()[0].outputs[0].consumers()
        assert {one.outputs[0].dtype for one in last} == {ir.DataType.UINT16}


def test_chips_are_known_by_name() -> None:
    assert (soc_named("sm8650").model, soc_named("SM8650").arch) == (57, 75)
    assert len({soc.arch for soc in SOCS.values()}) == len(SOCS)
    with pytest.raises(UsageError, match="--soc: expected SM8350"):
        soc_named("SM1")


def test_a_missing_compiler_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    monkeypatch.delitem(sys.modules, "quad.runtime.engines.qnn", raising=False)
    request = BuildRequest(Path("/nowhere"), {}, Path("/nowhere/phone"), target="qnn-htp")
    with pytest.raises(
        BackendError, match=r"target qnn-htp: expected the package onnxruntime_qnn, found none; install it: pip install 'quad\[qnn\]'"
    ):
        build(request)


class TestCompiled:
    """On the emulator."""

    def test_the_binary_is_for_the_chip(self, binary: Path) -> None:
        assert b"soc_type=SM8750;arch=79" in binary.with_name("model_qnn.bin").read_bytes()

    def test_the_emulator_agrees_with_the_cpu(self, placed: Placed, binary: Path) -> None:
        from quad.compile.qnn.emulate import check_agreement

        found = check_agreement(placed.graph, binary, SOC, fed(placed))
        assert set(found) == {"base", "transform", "removal"}
        assert min(found.values()) > 35.0

    def test_a_session_takes_floats_and_swaps_adapters(self, tiny: Any, placed: Placed, binary: Path) -> None:
        from quad.runtime.engines.qnn import open_engine

        session = open_engine("w8a16").load(binary, 1)
        assert session.inputs["timestep"] == (1,)
        outputs = []
        for adapter in (None, tiny.adapters[0], tiny.adapters[1], tiny.adapters[0], None):
            session.bind(quantize_adapter(adapter, placed.table, placed.profile))
            outputs.append(session.run(tiny.inputs))
            expected = tiny.torch_output(slot_inputs(adapter, tiny.table))
            assert relative_error(outputs[-1], expected) < 0.05
        np.testing.assert_array_equal(outputs[0], outputs[4])
        np.testing.assert_array_equal(outputs[1], outputs[3])
        assert (outputs[1] != outputs[2]).any()

    @pytest.mark.parametrize("placed", [16, pytest.param(8, marks=pytest.mark.soak)], indirect=True)
    def test_a_fault_is_found_and_named(self, placed: Placed, binary: Path, tmp_path: Path) -> None:
        """A binary of another graph: one weight's integers are turned around. The first edge behind it is named."""
        from quad.compile.qnn.emulate import check_agreement, first_divergence

        broken = placed.graph.model.clone()
        name, value = next((n, v) for n, v in broken.graph.initializers.items() if n.startswith("mid_block.attentions.0.proj_in.weight"))
        value.const_value = ir.tensor(np.ascontiguousarray(value.const_value.numpy()[::-1]), name=name)
        compile_htp(replace(placed.graph, model=broken), tmp_path / "unet", SOC)
        with pytest.raises(BackendError, match=r"at least 35 dB against the CPU, found"):
            check_agreement(placed.graph, tmp_path / "unet" / "model.onnx", SOC, fed(placed))
        # The sound graph itself, compiled anew with its edges as outputs, agrees everywhere.
        assert first_divergence(placed.graph, SOC, fed(placed)["transform"]) is None


def test_a_channel_of_nothing_but_a_bias_is_placed(tiny: Any, placed: Placed) -> None:
    """Its weight's step is next to nothing, so that its bias would leave 32 bits; the step of that channel alone is widened."""
    model = lowered(tiny, own := dict(placed.profile.component("unet")))
    name = "down_blocks.0.resnets.0.conv2.weight"
    weight = own[name]
    own[name] = msgspec.structs.replace(weight, scale=(1e-8, *weight.scale[1:]))
    graph = place_integers(model, own, placed.calls, TARGET, unobserved)
    found = graph.constants[name]
    assert found.scale[1:] == weight.scale[1:]
    bias = next(
        value for key, value in graph.model.graph.initializers.items() if key.startswith("down_blocks.0.resnets.0.conv2.bias/int32")
    )
    assert found.scale[0] > 1e-8
    assert np.abs(bias.const_value.numpy().astype(np.int64)).max() < 2**31 - 1
