"""ONNX Runtime alone, with its own `LoraAdapter`, answers as the pipeline does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from quad.core.errors import BackendError, UnsupportedError
from quad.export.ort_adapters import export_ort_adapters, write_ort_adapter
from quad.runtime.pipeline import QuadPipeline
from tests.export.bake.test_bake import _call


def _session(folder: Path, written: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in written["session_config"].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(folder / written["graphs"]["unet"]), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def written(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return tmp_path / "ort", export_ort_adapters(tiny_bundle, tmp_path / "ort")


def test_every_adapter_and_none_give_the_pipeline_s_numbers(tiny_bundle: Path, written: tuple[Path, dict[str, Any]]) -> None:
    folder, described = written
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
    session, call = _session(folder, described), _call(4)
    assert [given.name for given in session.get_inputs()] == [*call]  # the slots have defaults
    pipe.disable_lora()
    assert np.array_equal(session.run(None, call)[0], pipe.graph("unet").run(call))
    assert sorted(described["adapters"]) == ["removal", "sketch", "transform"]
    for name, files in described["adapters"].items():
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        adapter.Load(str(folder / files["unet"]))
        options.add_active_adapter(adapter)
        pipe.set_adapters(name)
        assert np.array_equal(session.run(None, call, options)[0], pipe.graph("unet").run(call))


def test_the_graph_is_valid_and_its_defaults_take_the_place_of_one(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    onnx.checker.check_model(str(folder / "unet.onnx"))
    graph = onnx.load(str(folder / "unet.onnx"), load_external_data=False).graph
    slots = [tensor for tensor in graph.initializer if ".lora_" in tensor.name]
    places = {entry.value for tensor in slots for entry in tensor.external_data if entry.key == "offset"}
    assert (len(slots), places) == (4, {"0"})


def test_all_types_of_slots_come_back_from_a_file(tmp_path: Path) -> None:
    tensors = {name: np.arange(5, dtype=name).reshape(1, 5) for name in ("int8", "int16", "float32")}
    write_ort_adapter(tmp_path / "a.onnx_adapter", tensors)
    back = ort.AdapterFormat.read_adapter(str(tmp_path / "a.onnx_adapter")).get_parameters()
    assert all(np.array_equal(back[name].numpy(), array) for name, array in tensors.items())


def test_binaries_of_a_chip_are_refused(bundle_copy: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    rewrite(bundle_copy, target="qnn-htp")
    with pytest.raises(UnsupportedError, match="ONNX graphs"):
        export_ort_adapters(bundle_copy, tmp_path / "ort")


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError):
        write_ort_adapter(tmp_path / "file/a.onnx_adapter", {"x": np.zeros((1, 1), np.float32)})
