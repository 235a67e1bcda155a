"""A graph in placement holds the weights of no layer: what it takes at once does not grow with their number."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from quad.compile.artifact import save_graph
from quad.compile.late_weights import delay_weights
from quad.compile.lazy_tensor import lazy_tensor
from quad.compile.passes import unobserved
from quad.compile.placement.edge_ranges import observe_edges
from quad.compile.placement.integer_graph import place_integers
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding, encode_range

TARGET, WIDTH, HIGH = load_target("qnn-htp"), 1024, 0.1
LAYER_BYTES = WIDTH * WIDTH  # as integers
CALL = ComponentCall(component="unet", source="base", inputs={"x0": np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]})


def numbers(layer: int) -> NDArray[np.float32]:
    return np.random.default_rng(layer).uniform(-HIGH, HIGH, (WIDTH, WIDTH)).astype(np.float32)


def encodings(layers: int) -> dict[str, Encoding]:
    bound = np.full(WIDTH, HIGH)
    return {f"{layer}.weight": encode_range(-bound, bound, bits=8, signed=True, symmetric=True, axis=1) for layer in range(layers)}


def chain(weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """One product behind the other."""
    values = [ir.Value(name=f"x{i}", shape=ir.Shape((1, WIDTH)), type=ir.TensorType(ir.DataType.FLOAT)) for i in range(len(weights) + 1)]
    constants = [
        ir.Value(name=name, const_value=tensor, shape=ir.Shape((WIDTH, WIDTH)), type=ir.TensorType(ir.DataType.FLOAT))
        for name, tensor in weights.items()
    ]
    nodes = [
        ir.Node("", "MatMul", (x, constant), outputs=(y,), name=f"product{i}")
        for i, (x, constant, y) in enumerate(zip(values, constants, values[1:], strict=False))
    ]
    graph = ir.Graph(values[:1], values[-1:], nodes=nodes, initializers=constants, opset_imports={"": 21}, name="unet")
    return ir.Model(graph, ir_version=10)


def lazy(layers: int) -> dict[str, ir.TensorProtocol]:
    return {
        f"{layer}.weight": lazy_tensor(lambda layer=layer: numbers(layer), ir.DataType.FLOAT, (WIDTH, WIDTH), f"{layer}.weight")  # type: ignore[misc]
        for layer in range(layers)
    }


def peak_bytes(layers: int, folder: Path) -> int:
    """Of placing and writing; what the engine takes is not among it."""
    model = chain(lazy(layers))
    tracemalloc.start()
    try:
        placed = place_integers(model, encodings(layers), [CALL], TARGET, unobserved)
        save_graph(placed.model, folder / "placed.onnx")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_is_held_at_once_does_not_grow_with_the_number_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quad.compile.artifact.EXTERNAL_DATA_BYTES", 0)
    few, many = (peak_bytes(layers, tmp_path) for layers in (2, 14))
    assert many - few < LAYER_BYTES
    assert (tmp_path / "placed.onnx.data").stat().st_size > 14 * LAYER_BYTES


def alive_bytes(model: ir.Model) -> int:
    """The most that computed values take at once, each held from its operator to its last reader, in the order of the file."""
    last = {id(value): index for index, node in enumerate(model.graph) for value in node.inputs}
    alive: dict[int, int] = {}
    most = 0
    for index, node in enumerate(model.graph):
        alive |= {id(value): math.prod(value.shape.numpy()) * 4 for value in node.outputs if value.shape is not None}
        most = max(most, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if last.get(key, -1) > index}
    return most


def test_no_graph_that_is_run_holds_the_numbers_of_several_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the file a weight is dequantized just before its layer, and an edge is looked at just behind."""
    observed: list[ir.Model] = []

    def save(model: ir.Model, path: Path) -> tuple[str, ...]:
        observed.append(model)
        return save_graph(model, path)

    monkeypatch.setattr("quad.compile.placement.edge_ranges.save_graph", save)
    placed = [place_integers(chain(lazy(layers)), encodings(layers), [CALL], TARGET, unobserved).model for layers in (2, 6)]
    for few, many in (observed, placed):
        least, most = alive_bytes(few), alive_bytes(many)
        assert 4 * LAYER_BYTES < least <= most < least + LAYER_BYTES / 100


def test_ranges_are_those_of_the_rounded_weights() -> None:
    layers = 3
    given = encodings(layers)
    rounded = {
        name: ir.tensor(encoding.dequantize(encoding.quantize(numbers(layer)))) for layer, (name, encoding) in enumerate(given.items())
    }
    expected, exact = observe_edges(chain(rounded), [CALL], {}), observe_edges(chain(lazy(layers)), [CALL], {})
    measured = observe_edges(chain(lazy(layers)), [CALL], given)
    assert measured.keys() == expected.keys()
    for name, bounds in measured.items():
        np.testing.assert_allclose(bounds, expected[name], rtol=1e-5, atol=1e-7)
    assert measured != exact


def test_a_weight_waits_for_its_layer_and_is_the_same(tmp_path: Path) -> None:
    """Whatever order an engine chooses: no dequantized weight can be had before the layer in front has its input."""
    placed = place_integers(chain(lazy(4)), encodings(4), [CALL], TARGET, unobserved)
    delayed = placed.model.clone()
    delay_weights(delayed.graph)
    layers = [node for node in delayed.graph if node.op_type == "MatMul"]
    for node in layers:
        needed, seen = [node.inputs[1].producer()], set()
        while needed:
            maker = needed.pop()
            seen.add(maker)
            needed += [value.producer() for value in maker.inputs if value is not None and value.producer() is not None]
        assert seen >= set(layers[: layers.index(node)])
    ir.save(placed.model, tmp_path / "placed.onnx")
    ir.save(delayed, tmp_path / "delayed.onnx")
    feed = {"x0": placed.edges["x0"].quantize(CALL.inputs["x0"])}
    here, there = (ort.InferenceSession(tmp_path / name).run(None, feed)[0] for name in ("placed.onnx", "delayed.onnx"))
    np.testing.assert_array_equal(here, there)
