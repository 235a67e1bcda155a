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
from quad.core.encoding import Encoding
from quad.core.errors import InputError, UnsupportedError
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.export.qairt import export_qairt
from tests.runtime.conftest import (
    NORMALISED_PROFILE,
    NORMALISED_SLOTS,
    SLOTS,
    adapter_tensors,
    make_normalised,
    normalised_tensors,
)
from tests.runtime.tiny_unet import HIDDEN, LATTICE, RANK, SIDE, SITE, save_graph, value

(VECTOR,) = NORMALISED_SLOTS.scale_inputs()
SCALES = Encoding(bits=16, signed=True, symmetric=True, scale=(8 / 32639,), zero_point=(0,), largest=32639)
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


def _float_graph(folder: Path, slots: SlotTable) -> None:
    """The float graph of two slots beside a bundle, in a new directory; scales are split by it and stand on `A x`."""
    (vector,) = slots.scale_inputs() or ("",)
    scaled = [
        helper.make_node("Split", [vector, "ranks"], ["part_0", "part_1"]),
        helper.make_node("Reshape", ["part_0", "wide"], ["part_0_r"]),
        helper.make_node("Mul", ["c", "part_0_r"], ["c_s"]),
        helper.make_node("Mul", ["m", "part_1"], ["m_s"]),
    ]
    steps = [
        *scaled[: 2 if vector else 0],
        helper.make_node("Conv", ["sample", "conv_in.lora_A"], ["c"], pads=[1, 1, 1, 1]),
        *scaled[2 : 3 if vector else 2],
        helper.make_node("Conv", ["c_s" if vector else "c", "conv_in.lora_B"], ["h"]),
        helper.make_node("Reshape", ["h", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "mid.to_q.lora_A"], ["m"], transB=1),
        *scaled[3 : 4 if vector else 3],
        helper.make_node("Gemm", ["m_s" if vector else "m", "mid.to_q.lora_B"], ["y"], transB=1),
    ]
    inputs = [value("sample", [1, 9, SIDE, SIDE]), *(value(name, list(shape)) for name, shape in slots.input_shapes().items())]
    constants = {"rows": np.array([SIDE * SIDE, HIDDEN])}
    if vector:
        constants |= {"ranks": np.array([RANK, RANK]), "wide": np.array([-1, 1, 1])}
    save_graph(folder / "unet.onnx", "unet", steps, inputs, value("y", [SIDE * SIDE, HIDDEN]), constants)


@pytest.fixture
def phone(bundle_copy: Path, rewrite: Callable[..., None]) -> Path:
    """The tiny bundle as if for that target, and beside it a float graph of two slots with encodings."""
    rewrite(bundle_copy, target="qnn-htp")
    beside = bundle_copy.with_name("phone.qairt")
    _float_graph(beside, SLOTS)
    write_encodings("unet", {"c": SITE, **dict.fromkeys(SLOTS.input_shapes(), LATTICE)}, {}, beside)
    return bundle_copy


@pytest.fixture
def normalised_phone(tiny_bundle: Path, tmp_path: Path, rewrite: Callable[..., None]) -> Path:
    """The same with normalised slots, whose scales are integers there."""
    encodings = {**NORMALISED_PROFILE.component("unet"), VECTOR: SCALES}
    profile = Profile(encodings={"unet": encodings})
    bundle = make_normalised(tiny_bundle, tmp_path / "phone", profile)
    parents = {"base": "0" * 64, "slots": NORMALISED_SLOTS.digest, "profile": profile.digest}
    rewrite(bundle, target="qnn-htp", parents=parents)
    beside = bundle.with_name("phone.qairt")
    _float_graph(beside, NORMALISED_SLOTS)
    write_encodings("unet", {"c": SITE, **encodings, "part_0": SCALES, "part_0_r": SCALES, "part_1": SCALES}, {}, beside)
    return bundle


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


def test_scales_are_a_constant_for_each_slot(normalised_phone: Path, tmp_path: Path) -> None:
    """A Split of a constant is one that a converter folds away, with the name that an adapter replaces."""
    export_qairt(normalised_phone, tmp_path / "out")
    listed = (tmp_path / "out/unet.lora_weight_list.txt").read_text().split()
    expected = [name for slot in NORMALISED_SLOTS.slots for name in (slot.a_name, slot.b_name, slot.scale_name)]
    assert listed == expected
    graph = onnx.load(tmp_path / "out/unet.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [given.name for given in graph.graph.input] == ["sample"]
    assert "Split" not in {node.op_type for node in graph.graph.node}
    assert {tensor.name for tensor in graph.graph.initializer} == {"rows", "wide", *listed}
    encodings = NORMALISED_PROFILE.component("unet")
    for name, (seed, rank) in RANKS.items():
        constants = load_file(tmp_path / f"out/{name}.unet.safetensors")
        assert sorted(constants) == sorted(listed)
        file, reals = normalised_tensors(seed, rank), {VECTOR: np.zeros(2 * RANK, np.float32)}
        for place, slot in enumerate(NORMALISED_SLOTS.slots):
            start = place * RANK
            reals[VECTOR][start : start + rank] = np.round(file[slot.scale_name] / SCALES.scale[0]) * SCALES.scale[0]
            for key, axis in ((slot.a_name, 0), (slot.b_name, 1)):
                wide = [(0, RANK - rank if at == axis else 0) for at in range(file[key].ndim)]
                reals[key] = np.pad(file[key] * np.float32(encodings[key].scale[0]), wide).astype(np.float32)
        whole = _answer(onnx.load(normalised_phone.with_name("phone.qairt") / "unet.onnx"), reals)
        assert np.abs(whole).max() > 0
        np.testing.assert_allclose(_answer(onnx.load(tmp_path / "out/unet.onnx"), constants), whole, rtol=1e-5, atol=1e-6)
    first, second = (json.loads((tmp_path / f"out/unet.encodings-{version}.json").read_text()) for version in ("1.0.0", "2.0.0"))
    assert [entry["name"] for entry in first["param_encodings"]] == sorted(listed)
    assert [entry["name"] for entry in first["activation_encodings"]] == ["c", "part_0_r"]
    steps = {entry["name"]: entry["y_scale"] for entry in second["encodings"]}
    assert sorted(steps) == sorted([*listed, "c", "part_0_r"])
    assert {steps[slot.scale_name] for slot in NORMALISED_SLOTS.slots} == {SCALES.scale[0]}


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


def test_a_graph_without_scales_is_not_that_of_normalised_slots(normalised_phone: Path, tmp_path: Path) -> None:
    beside = normalised_phone.with_name("phone.qairt")
    (beside / "unet.onnx").unlink()
    _float_graph(tmp_path / "searched", SLOTS)
    (tmp_path / "searched/unet.onnx").rename(beside / "unet.onnx")
    with pytest.raises(InputError, match=r"an input unet\.lora_scales, split for 2 slots, found none; [^\n]+--encodings DIR$"):
        export_qairt(normalised_phone, tmp_path / "out")
