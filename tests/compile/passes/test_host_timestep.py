"""The graph without its sines, fed with what the host computes, is the graph as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.compile.export import GraphSpec, export_graph
from quad.compile.graph_specs import sinusoid_of
from quad.compile.passes import RemoveSites, run_passes
from quad.compile.passes.operators.host_timestep import HostTimestep
from quad.core.ports import Sinusoid
from tests.compile.passes.conftest import Sketch, operators

CHANNELS = 16
TIMES = (0.0, 1.0, 498.5, 999.0)


class Embedded(nn.Module):
    """A timestep's embedding and one layer, as a U-Net begins."""

    def __init__(self, cosine_first: bool, shift: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time = Timesteps(CHANNELS, flip_sin_to_cos=cosine_first, downscale_freq_shift=shift)
        self.linear = nn.Linear(CHANNELS, 6)

    def forward(self, timestep: Tensor) -> Tensor:
        found: Tensor = self.linear(self.time(timestep))
        return found


def session(model: ir.Model, path: Path) -> Any:
    ir.save(RemoveSites()(model.clone()).model, path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("cosine_first", [True, False])
def test_the_host_computes_what_the_graph_did(cosine_first: bool, shift: float, tmp_path: Path) -> None:
    spec = GraphSpec(component="unet", inputs={"timestep": torch.tensor([500.0])}, output="out")
    before = export_graph(Embedded(cosine_first, shift), spec)
    after = run_passes(before.clone(), ["host_timestep"])
    assert operators(before)["Sin"] == operators(before)["Cos"] == 1
    assert after.graph.inputs[0].shape.numpy() == (1, CHANNELS)
    whole, cut = session(before, tmp_path / "whole.onnx"), session(after, tmp_path / "cut.onnx")
    sinusoid = Sinusoid(channels=CHANNELS, cosine_first=cosine_first, shift=shift)
    outputs: list[NDArray[Any]] = []
    for time in TIMES:
        given = np.array([time], np.float32)
        outputs.append(whole.run(None, {"timestep": given})[0])
        np.testing.assert_allclose(cut.run(None, {"timestep": sinusoid(given)})[0], outputs[-1], rtol=0, atol=1e-6)
        wrong = Sinusoid(channels=CHANNELS, cosine_first=not cosine_first, shift=shift)
        assert np.abs(cut.run(None, {"timestep": wrong(given)})[0] - outputs[-1]).max() > 1e-3
    assert np.ptp(np.concatenate(outputs), axis=0).max() > 0.1


def test_the_tiny_network_does_the_same(tiny: Any, tmp_path: Path) -> None:
    after = run_passes(tiny.graph.clone(), ["host_timestep"])
    assert not {"Sin", "Cos"} & set(operators(after))
    assert [value.name for value in after.graph.inputs] == [value.name for value in tiny.graph.graph.inputs]
    whole, cut = session(tiny.graph, tmp_path / "whole.onnx"), session(after, tmp_path / "cut.onnx")
    slots = {name: np.full(shape, 0.01, np.float32) for name, shape in tiny.table.input_shapes().items()}
    for time in TIMES:
        given = {**tiny.inputs, **slots, "timestep": np.array([time], np.float32)}
        expected = whole.run(None, given)[0]
        found = cut.run(None, {**given, "timestep": sinusoid_of(tiny.base)(given["timestep"])})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def sines(*, timestep_again: bool = False, apart: bool = False) -> ir.Model:
    sketch = Sketch()
    time = sketch.input("timestep", 1)
    angle = sketch.value("Mul", [time, sketch.noise("freq", 1, 4)], 1, 4)
    sin, cos = sketch.value("Sin", [angle], 1, 4), sketch.value("Cos", [angle], 1, 4)
    if apart:
        return sketch.model(sketch.value("Relu", [sin], 1, 4), sketch.value("Relu", [cos], 1, 4))
    y = sketch.value("MatMul", [sketch.value("Concat", [sin, cos], 1, 8, axis=1), sketch.noise("w", 8, 3)], 1, 3)
    return sketch.model(sketch.value("Add", [y, time], 1, 3) if timestep_again else y)


@pytest.mark.parametrize(("model", "reader"), [(sines(apart=True), "n0"), (sines(timestep_again=True), "n5")], ids=["apart", "again"])
def test_who_reads_the_timestep_another_way_is_named(model: ir.Model, reader: str) -> None:
    with pytest.raises(ir.passes.PassError, match=f"{reader} reads the timestep beside its one embedding"):
        run_passes(model, ["host_timestep"])


def test_other_graphs_stay() -> None:
    """No timestep: a text encoder's sines are its own."""
    sketch = Sketch()
    model = sketch.model(sketch.value("Sin", [sketch.input("x", 1, 4)], 1, 4))
    assert operators(run_passes(model, ["host_timestep"])) == {"Sin": 1}


def test_its_promise_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="n1 still computes an angle's sine"):
        HostTimestep().ensures(sines())
