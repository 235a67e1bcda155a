"""The float side of every comparison: its calls serve all that is measured later, and its weights go before others take their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quad.build.admission_data import Corrections
from quad.build.build import STAGES
from quad.build.calls import float_teacher
from quad.build.calls.float_teacher import FloatTeacher, measured_on
from quad.build.open_and_slot import open_and_slot
from quad.build.request import BuildRequest
from quad.core.decibels import relative_error
from quad.core.progress import StageClock, silent
from quad.lora.fit.integers import balanced_inputs
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import apply_weight, layers_of, weights_of
from quad.quantize.distill.teacher_calls import call_teacher
from quad.quantize.observe.batched_calls import batched_forward
from quad.quantize.observe.probe import one_side_each
from tests.build.samples import SAMPLES


def test_calls_of_before_equalization_are_recorded_once_and_their_answers_hold(
    model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_teacher, "record_probes", lambda *_: pytest.fail("probes were recorded again"))
    request = BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="mixed:80")
    model = open_and_slot(request, StageClock(STAGES, silent))
    assert model.mixed_precision.gains
    teacher = FloatTeacher.of(model, trains=False)
    assert list(teacher.probes) == [adapter.name for adapter in model.adapters]
    for adapter in model.adapters:
        calls = teacher.probes[adapter.name]
        answers = batched_forward(teacher.networks["unet"], [call.tensors() for call in calls], balanced_inputs(adapter, model.table))
        recorded = [np.asarray(call.expected) for call in calls]
        assert max(relative_error(answer.numpy(), expected) for answer, expected in zip(answers, recorded, strict=True)) < 1e-4


def test_what_is_let_go_leaves_memory_and_its_answers_stay(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    request = BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="w8a16")
    model = open_and_slot(request, StageClock(STAGES, silent))
    teacher = FloatTeacher.of(model, trains=False)
    trainer = FloatTeacher.of(model, trains=True)
    trainer.let_go()
    assert trainer.networks  # training asks them again
    del trainer
    adapter = model.adapters[0]
    measured = one_side_each(measured_on(teacher.probes[adapter.name]))
    asked = call_teacher(teacher.networks["unet"], slot_inputs(adapter, model.table), measured)
    teacher.let_go()
    recorded = call_teacher(None, {}, teacher.measured[adapter.name])
    assert all(torch.equal(one.target, other.target) for one, other in zip(recorded, asked, strict=True))
    # All adapters ask one base, in batches together: those add in another order than a call alone.
    assert max(relative_error(one.without.numpy(), other.without.numpy()) for one, other in zip(recorded, asked, strict=True)) < 1e-4
    path, layer = next(iter(layers_of(model.networks["unet"]).items()))
    weight, _ = teacher.layers[path]
    assert weight() is layer.weight
    apply_weight(layer, weights_of(model.networks["unet"])[f"{path}.weight"].copy())
    assert weight() is None
    assert Corrections.since(teacher.layers, model.networks["unet"], {}).compensated == (path,)
