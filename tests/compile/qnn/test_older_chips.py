"""Chips that read no 16-bit weight: slots on the left of products, constant weights in two halves; whole on the chip, and right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.agreement import AGREE_DB
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, integer_feeds, lower_layers, place_integers
from quad.compile.qnn.chips import NEWER, SOCS, Soc, generation_of, soc_named
from quad.compile.qnn.htp import compile_htp
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import BackendError, UnsupportedError
from quad.core.tensor_names import Role, role_of
from tests.compile.passes.conftest import Sketch, feeds

OLDER = [soc for soc in SOCS.values() if soc.arch < 73]
CHANNELS, RANK, SIZE, HEADS = 16, 4, 8, 2
TARGET = load_target("qnn-htp")


def network() -> ir.Model:
    """A convolution with 16-bit weights and a slot, then an attention whose q has one."""
    sketch = Sketch()
    shape = (1, CHANNELS, SIZE, SIZE)
    x = sketch.site(sketch.input("x", *shape), "conv.in")
    y = sketch.value("Conv", [x, sketch.noise("conv.weight", CHANNELS, CHANNELS, 3, 3), sketch.noise("conv.bias", CHANNELS)], *shape,
                     pads=[1, 1, 1, 1])  # fmt: skip
    down, up = sketch.input("conv.lora_A", RANK, CHANNELS, 3, 3), sketch.input("conv.lora_B", CHANNELS, RANK, 1, 1)
    mid = sketch.value("Conv", [x, down], 1, RANK, SIZE, SIZE, pads=[1, 1, 1, 1])
    y = sketch.value("Add", [y, sketch.value("Conv", [sketch.site(mid, "conv.lora_mid"), up], *shape)], *shape)
    tokens = sketch.transpose(sketch.reshape(y, 1, CHANNELS, SIZE * SIZE), 0, 2, 1)
    q = sketch.slotted(tokens, "to_q", CHANNELS, RANK)
    q, k, v = (
        sketch.transpose(sketch.reshape(one, 1, SIZE * SIZE, HEADS, CHANNELS // HEADS), 0, 2, 1, 3)
        for one in (q, sketch.linear(tokens, "to_k", CHANNELS), sketch.linear(tokens, "to_v", CHANNELS))
    )
    scores = sketch.value("MatMul", [q, sketch.transpose(k, 0, 1, 3, 2)], 1, HEADS, SIZE * SIZE, SIZE * SIZE)
    scores = sketch.value("Mul", [scores, sketch.constant("scale", np.float32(0.01))], *scores.shape.numpy())
    return sketch.model(sketch.value("MatMul", [sketch.value("Softmax", [scores], *scores.shape.numpy(), axis=-1), v], *v.shape.numpy()))


def call_of(model: ir.Model) -> ComponentCall:
    generator = np.random.default_rng(2)
    slots = {
        str(value.name): (generator.standard_normal(value.shape.numpy()) / 8).astype(np.float32)
        for value in model.graph.inputs
        if ".lora_" in str(value.name)
    }
    return ComponentCall(component="g", source="noise", inputs=feeds(model), slots=slots)


def profile_of(model: ir.Model, call: ComponentCall) -> dict[str, Encoding]:
    encodings: dict[str, Encoding] = {}
    weights = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if role_of(name) is Role.WEIGHT}
    for name, array in {**weights, **call.slots}.items():
        limit, bits = float(np.abs(array).max()), 8 if name.startswith("to_") and name in weights else 16
        encodings[name] = encode_range(-limit, limit, bits=bits, signed=True, symmetric=True).within(TARGET.int16_largest)
    return encodings


def placed_for(soc: Soc) -> tuple[IntegerGraph, dict[str, dict[str, np.ndarray]]]:
    model = network()
    call = call_of(model)
    profile, generation = profile_of(model, call), generation_of(soc)
    table = generation.table(TARGET)
    model = lower_layers(run_passes(model, passes_before(TARGET.passes)), profile, table, unobserved, generation.passes)
    graph = place_integers(model, profile, [call], table, unobserved)
    return graph, integer_feeds(graph, [call], profile)


@pytest.mark.parametrize("soc", OLDER, ids=lambda soc: soc.name)
def test_an_older_chip_takes_all_of_it_and_computes_it_right(soc: Soc, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from quad.compile.qnn.emulate import check_agreement

    graph, given = placed_for(soc)
    compiled = compile_htp(graph, tmp_path / "g", soc)
    assert (compiled.placement["on_cpu"], compiled.placement["partitions"]) == (0, 1)
    # Ranges that are moved by up to 0.3 % give 36.6 to 47.5 dB on v68: the bar is a build's own, and garbage has 15 dB and less.
    assert check_agreement(graph, tmp_path / "g" / "model.onnx", soc, given)["noise"] > AGREE_DB
    assert f"soc_type={soc.name};arch={soc.arch}".encode() in (tmp_path / "g" / "model_qnn.bin").read_bytes()


def test_it_refuses_what_newer_chips_are_given(tmp_path: Path) -> None:
    """Why there is another form at all."""
    pytest.importorskip("onnxruntime_qnn")
    graph, _ = placed_for(soc_named("SM8750"))
    with pytest.raises(BackendError, match="g on SM8450: expected a graph that the compiler takes whole"):
        compile_htp(graph, tmp_path / "g", soc_named("SM8450"))


def test_newer_chips_are_given_what_they_were() -> None:
    """No pass, no other table: their files stay as they are, byte for byte."""
    newer = [soc for soc in SOCS.values() if soc.arch >= 73]
    assert len(newer) == 4
    assert {generation_of(soc) for soc in newer} == {NEWER}
    assert NEWER.passes == ()
    assert NEWER.table(TARGET) == TARGET


def test_a_16_bit_weight_that_is_left_is_told() -> None:
    model = network()
    profile = profile_of(model, call := call_of(model))
    table = generation_of(soc_named("SM8450")).table(TARGET)
    with pytest.raises(UnsupportedError, match=r"conv.weight: expected a weight scheme of Conv on target qnn-htp, found int16"):
        place_integers(run_passes(model, passes_before(TARGET.passes)), profile, [call], table, unobserved)
