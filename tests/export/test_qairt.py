"""Files for Qualcomm's LoRA tools: constants instead of inputs, one set of encodings, every adapter's numbers under their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from quad.compile.qnn.aimet_files import write_encodings
from quad.core.errors import InputError, UnsupportedError
from quad.export.qairt import export_qairt
from tests.runtime.conftest import SLOTS, adapter_tensors
from tests.runtime.tiny_unet import HIDDEN, LATTICE, SIDE, SITE, save_graph, value

RANKS = {"transform": (0, 2), "removal": (1, 2), "sketch": (2, 4)}  # seed and rank, as the bundle's own
CALL = np.random.default_rng(0).standard_normal((1, 9, SIDE, SIDE)).astype(np.float32)


def _answer(graph: onnx.ModelProto, slots: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Of a graph whose slots are inputs, or are put in as constants."""
    known = {tensor.name for tensor in graph.graph.initializer}
    for tensor in graph.graph.initializer:
        if tensor.name in slots:
            tensor.CopyFrom(numpy_helper.from_array(slots[tensor.name], tensor.name))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: NDArray[Any] = session.run(None, {"sample": CALL, **{name: array for name, array in slots.items() if name not in known}})[0]
    return answer


@pytest.fixture
def phone(bundle_copy: Path, rewrite: Callable[..., None]) -> Path:
    """The tiny bundle as if for that target, and beside it a float graph of two slots with encodings."""
    rewrite(bundle_copy, target="qnn-htp")
    steps = [
        helper.make_node("Conv", ["sample", "conv_in.lora_A"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "conv_in.lora_B"], ["h"]),
        helper.make_node("Reshape", ["h", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "mid.to_q.lora_A"], ["m"], transB=1),
        helper.make_node("Gemm", ["m", "mid.to_q.lora_B"], ["y"], transB=1),
    ]
    inputs = [value("sample", [1, 9, SIDE, SIDE]), *(value(name, list(shape)) for name, shape in SLOTS.input_shapes().items())]
    beside = bundle_copy.with_name("phone.qairt")
    output = value("y", [SIDE * SIDE, HIDDEN])
    save_graph(beside / "unet.onnx", "unet", steps, inputs, output, {"rows": np.array([SIDE * SIDE, HIDDEN])})
    write_encodings("unet", {"c": SITE, **dict.fromkeys(SLOTS.input_shapes(), LATTICE)}, {}, beside)
    return bundle_copy


def test_each_adapter_s_constants_give_the_graph_that_reads_it(phone: Path, tmp_path: Path) -> None:
    export_qairt(phone, tmp_path / "out")
    listed = (tmp_path / "out/unet.lora_weight_list.txt").read_text().split()
    assert listed == list(SLOTS.input_shapes())
    for name, (seed, rank) in RANKS.items():
        constants = load_file(tmp_path / f"out/{name}.unet.safetensors")
        assert sorted(constants) == sorted(listed)
        reals = {key: array.astype(np.float32) * np.float32(LATTICE.scale[0]) for key, array in adapter_tensors(seed, rank).items()}
        expected = _answer(onnx.load(phone.with_name("phone.qairt") / "unet.onnx"), reals)
        np.testing.assert_allclose(_answer(onnx.load(tmp_path / "out/unet.onnx"), constants), expected, rtol=1e-5, atol=1e-6)


def test_slots_are_parameters_and_all_use_cases_have_one_set_of_encodings(phone: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    export_qairt(phone, tmp_path / "out")
    graph = onnx.load(tmp_path / "out/unet.onnx")
    onnx.checker.check_model(graph)
    assert [given.name for given in graph.graph.input] == ["sample"]
    encodings = json.loads((tmp_path / "out/unet.encodings-1.0.0.json").read_text())
    assert sorted(entry["name"] for entry in encodings["param_encodings"]) == sorted(SLOTS.input_shapes())
    assert [entry["name"] for entry in encodings["activation_encodings"]] == ["c"]
    cases = yaml.safe_load((tmp_path / "out/unet.lora_config.yaml").read_text())["use_case"]
    assert sorted(case["name"] for case in cases) == sorted(RANKS)
    assert {case["quant_overrides"] for case in cases} == {"unet.encodings-1.0.0.json"}
    assert all((tmp_path / "out" / case[key]).is_file() for case in cases for key in ("model_name", "lora_weights", "quant_overrides"))


def test_another_target_and_a_missing_or_foreign_directory_are_refused(phone: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="for qnn-htp"):
        export_qairt(tiny_bundle, tmp_path / "out")
    with pytest.raises(InputError, match="--encodings DIR"):
        export_qairt(phone, tmp_path / "out", tmp_path)
    foreign = onnx.load(phone.with_name("phone.qairt") / "unet.onnx")
    foreign.graph.input[1].name = "elsewhere.lora_A"
    onnx.save(foreign, phone.with_name("phone.qairt") / "unet.onnx")
    with pytest.raises(InputError, match=r"an input conv_in\.lora_A"):
        export_qairt(phone, tmp_path / "out")
