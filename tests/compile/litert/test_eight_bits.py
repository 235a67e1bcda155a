"""A layer with a slot whose input has 8 bits: the layer computes in 8, its slot in 16, and LiteRT's integers are ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

pytest.importorskip("ai_edge_litert")

from quad.compile.litert.audit import audit
from quad.compile.litert.flatbuffer import read_operators, read_tensors, serialize
from quad.compile.litert.interpreter import TfliteRunner
from quad.compile.litert.rules import lower
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import integer_feeds, place_integers
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.decibels import array_sqnr_db
from quad.core.encoding import encode_range
from quad.quantize.encodings.ranges import RangeOptions, weight_encoding
from quad.runtime.engines.ort import session_options
from tests.compile.passes.conftest import Sketch

TARGET = load_target("litert")
SLOTS = ("fc.lora_A", "fc.lora_B")
PASSES = [name for name in passes_before(TARGET.passes) if name != "host_timestep"]


@pytest.mark.parametrize("lora_bits", [16, 8])
def test_a_layer_of_eight_bits_with_its_slot(lora_bits: int, tmp_path: Path) -> None:
    sketch = Sketch()
    model = run_passes(sketch.model(sketch.slotted(sketch.input("x", 1, 7, 16), "fc", 8)), PASSES)
    generator = np.random.default_rng(1)
    feed = {str(value.name): generator.standard_normal(value.shape.numpy()).astype(np.float32) for value in model.graph.inputs}
    feed["x"] += 1.0

    weight = weight_encoding(model.graph.initializers["fc.weight"].const_value.numpy().T, 8, RangeOptions())
    profile = {
        "fc.in": encode_range(-2.0, 4.5, bits=8, signed=True, symmetric=False),
        "fc.lora_mid": encode_range(-60.0, 60.0, bits=16, signed=True, symmetric=True),
        "fc.weight": weight,
        **dict.fromkeys(SLOTS, encode_range(-4.0, 4.0, bits=lora_bits, signed=True, symmetric=True)),
    }
    slots = {name: feed[name] for name in SLOTS}
    call = ComponentCall(source="base", inputs={"x": feed["x"]}, slots=slots)
    graph = place_integers(model, profile, [call], TARGET, unobserved)
    content = serialize(lower(graph.model))
    fed = integer_feeds(graph, [call], profile)["base"]
    ir.save(graph.model.clone(), tmp_path / "placed.onnx")
    session = ort.InferenceSession(str(tmp_path / "placed.onnx"), session_options("w8a16", 1), providers=["CPUExecutionProvider"])
    expected, output = session.run(None, fed)[0], TfliteRunner(content, "case", delegates=False).run(fed)
    encoding = next(iter(graph.ports.outputs.values())).encoding
    assert encoding is not None
    assert array_sqnr_db(encoding.dequantize(expected), encoding.dequantize(output)) > 40
    tensors = read_tensors(content)
    layer = next(operands for kind, operands, _ in read_operators(content) if kind == "FULLY_CONNECTED")
    assert [tensors[name].dtype for name in layer] == ["int8", "int8", "int32"]
    products = [operands for kind, operands, _ in read_operators(content) if kind == "BATCH_MATMUL"]
    assert {tensors[name].dtype for operands in products for name in operands} == {"int16"}
    assert audit(content, graph.model.graph, profile).widened == ()
