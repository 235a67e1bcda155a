"""A large graph keeps its weights as integers: what it answers stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from quad.runtime import AdapterStore, open_bundle
from quad.runtime.engines import ort
from quad.runtime.engines.engine import open_engine
from tests.runtime.engines.test_engine import step_inputs


def answer(bundle: Path) -> np.ndarray:
    session = open_engine("ort", ("ort",), "w8a16").load(bundle / "unet/model.onnx", 1)
    session.bind(AdapterStore(open_bundle(bundle)).buffers("transform"))
    return session.run(step_inputs())


def weights_after_load(bundle: Path, into: Path) -> set[int]:
    """Element types of the matrices and kernels that are left once the library has rewritten the graph."""
    graph = bundle / "unet/model.onnx"
    options = ort.session_options("w8a16", 1)
    options.optimized_model_filepath = str(into)
    spared = [*ort.LEFT_OUT] if ort.is_large(graph, "w8a16") else []
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=spared)
    return {weight.data_type for weight in onnx.load(into).graph.initializer if len(weight.dims) > 1}


def test_its_weights_stay_integers_and_its_answer_the_same(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    folded, before = answer(tiny_bundle), weights_after_load(tiny_bundle, tmp_path / "small.onnx")
    monkeypatch.setattr(ort, "LARGE_BYTES", 1)
    after = weights_after_load(tiny_bundle, tmp_path / "large.onnx")
    assert onnx.TensorProto.INT8 in after - before
    np.testing.assert_allclose(answer(tiny_bundle), folded, rtol=0, atol=1e-5 * np.abs(folded).max())


def test_graphs_with_integer_kernels_and_small_ones_are_rewritten_as_ever(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    graph = tiny_bundle / "unet/model.onnx"
    assert not ort.is_large(graph, "w8a16")
    monkeypatch.setattr(ort, "LARGE_BYTES", 1)
    assert ort.is_large(graph, "w8a16")
    assert not ort.is_large(graph, "mixed:80")
    assert not ort.is_large(graph, "float")


def test_weights_of_four_bits_are_large_at_half_the_bytes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny_bundle / "unet/model.onnx"
    size = sum(file.stat().st_size for file in graph.parent.iterdir() if file == graph or file.suffix == ".data")
    monkeypatch.setattr(ort, "LARGE_BYTES", 2 * size)
    assert ort.is_large(graph, "w4a16")
    assert not ort.is_large(graph, "w8a16")
