"""The float side of every comparison: calls that equalization recorded serve all that is measured later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quad.build.build import STAGES
from quad.build.calls import float_teacher
from quad.build.calls.float_teacher import FloatTeacher
from quad.build.open_and_slot import open_and_slot
from quad.build.request import BuildRequest
from quad.core.decibels import relative_error
from quad.core.progress import StageClock, silent
from quad.lora.fit.integers import balanced_inputs
from quad.quantize.observe.batched_calls import batched_forward
from tests.build.samples import SAMPLES


def test_calls_of_before_equalization_are_recorded_once_and_their_answers_hold(
    model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float_teacher, "record_probes", lambda *_: pytest.fail("probes were recorded again"))
    request = BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="mixed:80")
    model = open_and_slot(request, StageClock(STAGES, silent))
    assert model.mixed_precision.gains
    teacher = FloatTeacher.of(model)
    assert list(teacher.probes) == [adapter.name for adapter in model.adapters]
    for adapter in model.adapters:
        calls = teacher.probes[adapter.name]
        answers = batched_forward(teacher.networks["unet"], [call.tensors() for call in calls], balanced_inputs(adapter, model.table))
        recorded = [np.asarray(call.expected) for call in calls]
        assert max(relative_error(answer.numpy(), expected) for answer, expected in zip(answers, recorded, strict=True)) < 1e-4
