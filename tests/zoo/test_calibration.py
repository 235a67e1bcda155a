"""Samples for a plain model: every way of its tasks, every adapter, and no more U-Net calls than are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quad.build.calls.short_samples import PER_ADAPTER, UNET_CALLS
from quad.quantize.observe.calibrate import CalibrationSample
from quad.zoo.calibration import calibration_samples


def _model(root: Path, channels: int) -> Path:
    (root / "unet").mkdir(exist_ok=True)
    (root / "unet" / "config.json").write_text(json.dumps({"in_channels": channels, "out_channels": 4}))
    return root


def _calls(samples: tuple[CalibrationSample, ...]) -> int:
    """Both sides of guidance at every step."""
    return sum(2 * (sample.steps or 10**6) for sample in samples)


@pytest.mark.parametrize("channels", [4, 8, 9])
@pytest.mark.parametrize("count", [0, 1, 10])
def test_every_way_and_every_adapter_within_the_calls(channels: int, count: int, tmp_path: Path) -> None:
    names = [f"ink{i}" for i in range(count)]
    samples = calibration_samples(_model(tmp_path, channels), names)
    alone = {sample.task for sample in samples if sample.adapter is None}
    main = "transform" if channels == 8 else "text-to-image"
    assert alone == {main, "transform", "removal"}
    per_adapter = [sum(sample.adapter == name for sample in samples) for name in names]
    assert all(1 <= number <= PER_ADAPTER for number in per_adapter)
    assert per_adapter == [PER_ADAPTER] * count or count == 10
    assert _calls(samples) <= 1.05 * UNET_CALLS
    assert len({sample.steps for sample in samples}) > 1
    assert all(sample.image is not None and sample.mask is not None for sample in samples)


def test_an_adapter_named_like_a_task_is_shown_at_it(tmp_path: Path) -> None:
    samples = calibration_samples(_model(tmp_path, 4), ["sketch", "removal", "ink"])
    used = {(sample.task, sample.adapter) for sample in samples}
    assert {("sketch", "sketch"), ("removal", "removal"), ("text-to-image", "ink")} <= used
    assert ("removal", None) not in used


def test_a_place_without_a_model_has_none(tmp_path: Path) -> None:
    assert calibration_samples(tmp_path, []) == ()
