"""Stages of a build: timed, and in the log."""

from __future__ import annotations

import logging

import pytest

from quad.core.progress import StageClock, silent


def test_each_stage_and_its_seconds_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "quad.core.progress")
    clock = StageClock(("open", "write"), silent)
    with clock("open"):
        pass
    with pytest.raises(ValueError, match="lost"), clock("write"):
        raise ValueError("lost")
    assert caplog.messages == ["stage open: begins", "stage open: 0.0 s", "stage write: begins", "stage write: 0.0 s"]
    assert clock.seconds.keys() == clock.cpu.keys() == {"open", "write"}
    assert 0 < clock.peak_bytes["open"] <= clock.peak_bytes["write"]
