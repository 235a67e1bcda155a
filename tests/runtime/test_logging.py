"""The log says what was decided, and nothing of a prompt."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from quad.core.errors import BusyError
from quad.core.storage.pack import write_pack
from quad.runtime import QuadPipeline, Request, Scheduler, SchedulerOptions

PROMPT = "a secret harbour"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="quad")
    return caplog


def test_engine_plan_and_adapters_are_logged(tiny_bundle: Path, tmp_path: Path, ink: Any, log: pytest.LogCaptureFixture) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1, memory="balanced", adapter_budget_bytes=0)
    write_pack(tmp_path / "ink.qpack", *ink)
    pipe.load_lora_weights(tmp_path / "ink.qpack", "pen")
    for name in ("pen", "sketch"):
        pipe.set_adapters(name)
        pipe(PROMPT, task="text-to-image")
    pipe.unload("pen")
    for says in (
        "engine ort: opened for precision w8a16",
        "memory plan balanced: unet stay in memory",
        "adapter pen: registered, rank 2",
        "adapter pen: evicted from memory",
        "graph text_encoder: unloaded",
        "adapters: bound to {'sketch': 1.0}",
        "adapter pen: unregistered",
    ):
        assert says in log.text
    assert not any(word in log.text for word in PROMPT.split() if len(word) > 1)


def test_the_ends_of_requests_are_logged(tiny_bundle: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
    with Scheduler(pipe, SchedulerOptions(max_queue=0)) as scheduler, pytest.raises(BusyError):
        scheduler.submit(Request(prompt=PROMPT))
    finish, cancelled = pipe.finish, threading.Event()

    def finish_later(*arguments: Any) -> Any:
        assert cancelled.wait(60)
        return finish(*arguments)

    monkeypatch.setattr(pipe, "finish", finish_later)
    with Scheduler(pipe) as scheduler:
        first, second = scheduler.submit(Request(prompt=PROMPT)), scheduler.submit(Request(prompt=PROMPT))
        second.cancel()
        cancelled.set()
        first.result(60)
    assert "scheduler: a request refused, 0 are waiting" in log.text
    assert "request 0: done" in log.text
    assert "request 1: cancelled" in log.text
    assert not any(word in log.text for word in PROMPT.split() if len(word) > 1)


def test_no_handler_is_installed() -> None:
    assert logging.getLogger("quad").handlers == []
