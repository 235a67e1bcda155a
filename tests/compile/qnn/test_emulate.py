"""Faults of the real compiler, found and named. All are accepted by it without a word (onnxruntime-qnn 2.7.0, SM8750, emulator)."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from quad.compile.passes import run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, integer_feeds, place_integers
from quad.compile.qnn.chips import soc_named
from quad.compile.qnn.htp import compile_htp
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import BackendError
from tests.compile.passes.conftest import Sketch, feeds

pytest.importorskip("onnxruntime_qnn")

from quad.compile.qnn import emulate

CHANNELS, GROUPS = 16, 8
SOC = soc_named("SM8750")


def resnet_start(height: int, *, native: bool, width: int | None = None) -> ir.Model:
    """conv -> group norm -> x sigmoid(x) -> conv; the norm as one operator, or by InstanceNormalization."""
    sketch = Sketch()
    width = width or height
    shape = (1, CHANNELS, height, width)
    x = _conv(sketch, sketch.input("x", *shape), "first")
    if native:
        x = sketch.value("GroupNormalization", [x, sketch.noise("g", CHANNELS), sketch.noise("b", CHANNELS)], *shape, num_groups=GROUPS)
    else:
        flat = sketch.reshape(x, 1, GROUPS, CHANNELS // GROUPS * height * width)
        one, zero = (sketch.constant(name, np.full(GROUPS, fill, np.float32)) for name, fill in (("one", 1), ("zero", 0)))
        x = sketch.reshape(sketch.value("InstanceNormalization", [flat, one, zero], *flat.shape.numpy()), *shape)
        x = sketch.value("Mul", [x, sketch.noise("g", 1, CHANNELS, 1, 1)], *shape)
        x = sketch.value("Add", [x, sketch.noise("b", 1, CHANNELS, 1, 1)], *shape)
    x.name = "normed"
    gate = sketch.value("Sigmoid", [x], *shape)
    x = sketch.value("Mul", [x, gate], *shape)
    gate.name, x.name = "gate", "silu"
    return sketch.model(_conv(sketch, x, "second"))


def _conv(sketch: Sketch, x: ir.Value, path: str) -> ir.Value:
    operands = [x, sketch.noise(f"{path}.weight", CHANNELS, CHANNELS, 3, 3), sketch.noise(f"{path}.bias", CHANNELS)]
    return sketch.value("Conv", operands, *x.shape.numpy(), pads=[1, 1, 1, 1])


def prepared(model: ir.Model) -> tuple[IntegerGraph, Mapping[str, Mapping[str, NDArray[Any]]]]:
    """Placed by what it computes on noise, and that noise as integers."""
    weights: dict[str, Encoding] = {}
    for name, value in model.graph.initializers.items():
        if name.endswith(".weight"):
            limit = float(np.abs(value.const_value.numpy()).max())
            weights[name] = encode_range(-limit, limit, bits=8, signed=True, symmetric=True)
    call = ComponentCall(component="g", source="noise", inputs=feeds(model))
    graph = place_integers(model, weights, [call], load_target("qnn-htp"), unobserved)
    return graph, integer_feeds(graph, [call], weights)


def agreement(model: ir.Model, folder: Path) -> float:
    graph, given = prepared(model)
    compile_htp(graph, folder / "g", SOC)
    return emulate.check_agreement(graph, folder / "g" / "model.onnx", SOC, given)["noise"]


@pytest.mark.parametrize("height", [4, 8])
def test_a_small_silu_behind_an_instance_norm_is_garbage_and_is_named(height: int, tmp_path: Path) -> None:
    """Looked at together each edge is right: what is an output is not fused. One at a time, the fused pair shows."""
    says = r"^g on the HTP with noise: expected at least 35 dB against the CPU, found .*; first to diverge is (gate/q .*Sigm|silu/q .*Mul)"
    with pytest.raises(BackendError, match=says):
        agreement(resnet_start(height, native=False), tmp_path)


def test_it_is_right_on_a_larger_picture_or_flat_or_behind_the_norm_itself(tmp_path: Path) -> None:
    flat = run_passes(resnet_start(8, native=False), ["flatten_small_silu"])
    models = {"large": resnet_start(9, native=False), "flat": flat, "native": resnet_start(8, native=True)}
    found = {}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        found[name] = agreement(model, tmp_path / name)
    assert min(found.values()) > 60, found


@pytest.mark.parametrize(("height", "width"), [(12, 12), (16, 8)])
def test_behind_the_norm_itself_other_sizes_are_garbage_and_right_flat(height: int, width: int, tmp_path: Path) -> None:
    graph = resnet_start(height, native=True, width=width)
    with pytest.raises(BackendError, match=r"at least 35 dB against the CPU, found"):
        agreement(graph.clone(), tmp_path / "garbage")
    assert agreement(run_passes(graph, ["flatten_normed_silu"]), tmp_path / "flat") > 60


def test_a_graph_that_agrees_has_no_first_divergence() -> None:
    graph, given = prepared(resnet_start(8, native=True))
    assert emulate.first_divergence(graph, SOC, given["noise"]) is None


@pytest.mark.parametrize("count", [1, 5, 40, 300])
@pytest.mark.parametrize("seen", ["always", "alone", "never again"])
def test_the_first_of_many_is_found(count: int, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search itself, against every place: from there on all edges diverge, always or only while few are looked at."""
    edges = [(f"edge{place}", "Op", None) for place in range(count)]
    monkeypatch.setattr(emulate, "_quantized", lambda graph: edges)
    for fault in range(count):
        looks: list[int] = []

        def compare(model: object, some: Any, soc: object, feed: object, fault: int = fault, looks: list[int] = looks) -> list[float]:
            looks.append(len(some))
            hidden = len(some) > 1 and seen == "alone"
            gone = len(looks) > 1 and seen == "never again"
            return [80.0 if hidden or gone or int(name.removeprefix("edge")) < fault else 3.0 for name, _, _ in some]

        monkeypatch.setattr(emulate, "_compare", compare)
        found = emulate.first_divergence(IntegerGraph(model=Sketch().model(), edges={}, constants={}, ports=None), SOC, {})  # type: ignore[arg-type]
        assert found is not None
        expected = count - 1 if seen == "never again" else fault
        assert found == emulate.Divergence(f"edge{expected}", "Op", 3.0)
        assert len(looks) <= 2 + np.ceil(np.log2(count + 1)), looks


def test_no_room_for_the_binary_is_not_called_a_fault_of_the_graph(tmp_path: Path) -> None:
    """The compiler itself writes it, and says that it could not; the graph is well and another chip would not help."""
    graph, _ = prepared(resnet_start(8, native=True))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # the graph has 9 kB, the binary 78
    try:
        with pytest.raises(BackendError, match=r"g: cannot write \(no room for the binary\); nothing was written, free some space"):
            compile_htp(graph, tmp_path / "g", SOC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
