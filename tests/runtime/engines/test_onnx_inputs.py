"""What a graph's file says of its inputs is what the engine says of them; and no bytes make the reader fail otherwise."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.onnx_inputs import graph_inputs

COMPONENTS = ("unet", "text_encoder", "vae_encoder", "vae_decoder")
_QUIET = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("component", COMPONENTS)
def test_as_the_engine(tiny_bundle: Path, component: str) -> None:
    file = tiny_bundle / component / "model.onnx"
    assert graph_inputs(file) == dict(open_engine("ort", ("ort",), "w8a16").load(file, 1).inputs)


def test_a_dynamic_axis_a_scalar_and_a_large_number(tmp_path: Path) -> None:
    shapes = {"x": ["batch", 4, 2**40], "t": []}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["t"], ["y"])], "g", inputs, [])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert graph_inputs(tmp_path / "model.onnx") == {"x": (None, 4, 2**40), "t": ()}


@_QUIET
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    found = graph_inputs(tmp_path / "model.onnx")
    assert found is None or isinstance(found, dict)


@_QUIET
@given(cut=st.floats(0, 1), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_damaged_graph(tiny_bundle: Path, tmp_path: Path, cut: float, place: float, bit: int) -> None:
    data = bytearray((tiny_bundle / "unet/model.onnx").read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    (tmp_path / "model.onnx").write_bytes(data[: int(cut * len(data))])
    found = graph_inputs(tmp_path / "model.onnx")
    assert found is None or isinstance(found, dict)


def test_no_file(tmp_path: Path) -> None:
    assert graph_inputs(tmp_path / "model.onnx") is None
