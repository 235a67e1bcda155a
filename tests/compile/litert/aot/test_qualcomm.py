"""Qualcomm's compiler through LiteRT's plugin: what it makes is pulled out and run in emulation, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="quad[litert] is not installed")
pytest.importorskip("onnxruntime_qnn", reason="quad[qnn] is not installed")

from quad.compile.litert.aot import qualcomm
from quad.compile.litert.aot.chips import CHIPS, chips_named
from quad.compile.litert.aot.compile import compile_for_chips, require_aot
from quad.compile.litert.aot.dispatch import read_dispatch
from quad.compile.litert.aot.observed import ObservedModel, computed_tensors, with_outputs
from quad.core.chips import EMULATED
from quad.core.errors import BackendError, UsageError
from tests.compile.litert.aot.small_files import control_file, norm_file, slot_feed, slot_file
from tests.compile.litert.aot.test_front_ends import written


def test_chips_are_known_by_name() -> None:
    assert [chip.name for chip in chips_named(["sm8750", "MT6993", "SM8750", "e9965"])] == ["SM8750", "MT6993", "E9965"]
    assert CHIPS["MT6993"].flags
    with pytest.raises(UsageError, match=r"--soc: expected MT6853 \| .* \| SM8850, found SM1; choose among these"):
        chips_named(["SM1"])
    with pytest.raises(UsageError, match=r"found SM8450; build with --target qnn-htp --soc SM8450"):
        chips_named(["SM8450"])
    require_aot(())


def test_a_file_becomes_one_binary_that_computes_what_the_interpreter_does(tmp_path: Path) -> None:
    model = written(slot_file(), tmp_path)
    (result,) = compile_for_chips(model, chips_named(["SM8650"]), {"a": slot_feed(0), "b": slot_feed(1)}, model.parent)
    assert (result.state, result.file, result.ops, result.partitions) == (EMULATED, "SM8650.tflite", 3, 1)
    assert set(result.agreement_db) == {"a", "b"}
    assert min(result.agreement_db.values()) > 55.0
    dispatch = read_dispatch(model.parent / "SM8650.tflite")
    assert [each.name for each in dispatch.inputs] == ["x", "fc.lora_A", "fc.lora_B"]
    assert b"soc_type=SM8650" in dispatch.binary


def test_a_norm_is_taken_whole_and_computed(tmp_path: Path) -> None:
    content, operators, feed = norm_file()
    model = written(content, tmp_path)
    (result,) = compile_for_chips(model, chips_named(["SM8750"]), {"a": feed}, model.parent)
    assert (result.state, result.ops, result.partitions) == (EMULATED, operators, 1)


def test_the_first_wrong_tensor_is_named_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is made to see another number in the middle than the chip computes, and so everywhere behind it."""
    run = ObservedModel.run

    def odd(self: ObservedModel, feed: dict[str, np.ndarray], tensors: list[int]) -> list[np.ndarray]:
        values = run(self, feed, tensors)
        return [value if self.names[place] == "mid" else value[:, ::-1] for place, value in zip(tensors, values, strict=True)]

    monkeypatch.setattr(ObservedModel, "run", odd)
    model = written(slot_file(), tmp_path)
    says = r"unet on SM8750 with a: expected at least 35 dB against LiteRT's CPU, found .* dB; first to diverge is delta \("
    with pytest.raises(BackendError, match=says):
        compile_for_chips(model, chips_named(["SM8750"]), {"a": slot_feed(0)}, model.parent)
    assert [path.name for path in model.parent.iterdir()] == ["model.tflite"]


def test_a_graph_that_is_not_taken_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older chips, which the table keeps out, split it."""
    model = written(slot_file(), tmp_path)
    with pytest.raises(BackendError, match=r"unet on SM8450 through LiteRT: expected .*operators? .*; report it with the model's name"):
        qualcomm.compile_qualcomm(model, CHIPS["SM8450"], tmp_path / "out.tflite", {"a": slot_feed(0)})


def test_values_inside_a_file_can_be_looked_at() -> None:
    content = slot_file()
    observed = ObservedModel(content, "g")
    assert [observed.names[place] for place in computed_tensors(content)] == ["mid", "delta", "y"]
    feed = slot_feed(0)
    x, a, b = (observed.real(place, array) for place, array in zip((0, 1, 2), feed.values(), strict=True))
    mid, y = observed.run(feed, [3, 5])
    np.testing.assert_allclose(observed.real(3, mid), x @ a.transpose(0, 2, 1), atol=1e-3)
    np.testing.assert_allclose(observed.real(5, y), x + (x @ a.transpose(0, 2, 1)) @ b.transpose(0, 2, 1), atol=1e-2)
    altered = ObservedModel(with_outputs(content, [3]), "g")
    assert [altered.names[place] for place in altered.outputs] == ["observed_3", "y"]
    assert not qualcomm.has_byte_activations(control_file())
