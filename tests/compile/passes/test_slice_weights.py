"""Large weights by slices: the same layer, never all of its floats at once; and whole again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from quad.compile.passes import finish
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.passes.edit import is_op
from quad.compile.passes.integers.slice_weights import MOST_NUMBERS, SliceWeights, join_slices
from quad.compile.placement.stored_weights import stored_weights
from quad.compile.targets import load_target
from quad.core.profile import Profile
from quad.runtime.engines.ort import LEFT_OUT, session_options
from tests.compile.passes.conftest import Sketch, feeds, operators
from tests.compile.passes.test_integer import weight

MOST = 40
LAYERS = {"Conv": (7, 3, 3, 3), "strided": (7, 3, 3, 3), "MatMul": (6, 20), "Gemm": (20, 6)}  # shapes of their weights


def layer(kind: str) -> ir.Model:
    sketch = Sketch()
    w = weight(sketch, "fc.weight", LAYERS[kind], 1 if kind == "MatMul" else 0)
    if kind == "MatMul":
        return sketch.model(sketch.value("MatMul", [sketch.input("x", 1, 5, 6), w], 1, 5, 20))
    if kind == "Gemm":
        return sketch.model(sketch.value("Gemm", [sketch.input("x", 5, 6), w, sketch.noise("fc.bias", 20)], 5, 20, transB=1))
    side, geometry = (2, {"strides": [2, 2], "pads": [0, 0, 1, 1]}) if kind == "strided" else (4, {"pads": [1, 1, 1, 1]})
    return sketch.model(sketch.value("Conv", [sketch.input("x", 1, 3, 4, 4), w, sketch.noise("fc.bias", 7)], 1, 7, side, side, **geometry))


@pytest.mark.parametrize("kind", LAYERS)
def test_slices_are_the_layer_and_the_layer_comes_back(kind: str) -> None:
    model, shape = layer(kind), LAYERS[kind]
    after = SliceWeights(MOST)(model.clone()).model
    check_contract(model, after, ContractTrial(inputs=feeds(model), tolerance=1e-6), "slice_weights")
    assert operators(after)["Concat"] == 1
    parts = [value.const_value.numpy() for value in after.graph.initializers.values() if value.name != "fc.weight" and "part" in value.name]
    assert max(part.size for part in parts) <= MOST
    before = model.graph.initializers["fc.weight"].const_value.numpy()
    np.testing.assert_array_equal(stored_weights(finish(after.clone()), {"fc.weight": shape})["fc.weight"], before)
    join_slices(after.graph)
    whole = finish(after)
    assert operators(whole) == operators(model)
    check_contract(model, whole, ContractTrial(inputs=feeds(model), tolerance=0.0), "join_slices")


def _not_cut(case: str) -> ir.Model:
    sketch = Sketch()
    x, w = sketch.input("x", 1, 6, 4, 4), weight(sketch, "fc.weight", (6, 6, 3, 3), None if case == "one scale" else 0)
    if case == "groups":
        return sketch.model(sketch.value("Conv", [x, weight(sketch, "g.weight", (6, 3, 3, 3), 0)], 1, 6, 2, 2, group=2))
    if case == "floats":
        return sketch.model(sketch.value("Conv", [x, sketch.noise("f.weight", 6, 6, 3, 3)], 1, 6, 2, 2))
    if case == "a computed bias":
        return sketch.model(sketch.value("Conv", [x, w, sketch.input("bias", 6)], 1, 6, 2, 2))
    outputs = [sketch.value("Conv", [x, w], 1, 6, 2, 2) for _ in range(2 if case == "two readers" else 1)]
    return sketch.model(*outputs)


@pytest.mark.parametrize("case", ["groups", "floats", "a computed bias", "two readers", "one scale"])
def test_what_is_another_operator_in_slices_stays(case: str) -> None:
    assert not SliceWeights(MOST)(_not_cut(case)).modified


def test_small_weights_stay() -> None:
    assert not SliceWeights()(layer("Conv")).modified
    assert MOST_NUMBERS > 512 * 512 * 9  # the widest layer of Stable Diffusion's autoencoder


def test_a_slice_is_dequantized_just_before_it_is_read(tmp_path: Path) -> None:
    """Else the floats of several slices are in memory at once, of layers to come too."""
    sketch = Sketch()
    x = sketch.input("x", 1, 6, 4, 4)
    for name in ("a", "b", "c"):
        x = sketch.value("Conv", [x, weight(sketch, f"{name}.weight", (6, 6, 3, 3), 0)], 1, 6, 4, 4, pads=[1, 1, 1, 1])
    model = sketch.model(x)
    model.graph.sort()
    late = [node for node in model.graph if is_op(node, "DequantizeLinear")]
    model.graph.remove(late)
    model.graph.insert_before(model.graph[0], late)  # as placement puts them
    ir.save(finish(SliceWeights(MOST)(model).model), tmp_path / "model.onnx")
    options = session_options("w8a16", 1)
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*LEFT_OUT]
    )
    session.run(None, feeds(model))
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event for event in events if event["name"].endswith("_kernel_time")]
    order = [event["args"]["op_name"] for event in sorted(ran, key=lambda event: event["ts"])]
    layers = [name for name in order if name != "Concat"]
    assert len(layers) > 12
    assert layers == ["DequantizeLinear", "Conv"] * (len(layers) // 2)


def test_only_graphs_whose_weights_become_floats_have_it() -> None:
    target = load_target("cpu")
    assert "slice_weights" not in target.passes
    assert target.for_profile(Profile(encodings={})).passes == (*target.passes, "slice_weights")
