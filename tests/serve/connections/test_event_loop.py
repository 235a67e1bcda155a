"""The server's clock stands still while its process does; what the machine lacks is a line now and then."""

from __future__ import annotations

import errno
import logging
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.serve.connections import event_loop
from quad.serve.connections.event_loop import RunningClock, ServerLoop
from quad.serve.connections.rare_warning import RareWarning


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=20))
def test_the_clock_goes_on_by_what_was_waited_for_and_never_back(spans: list[tuple[float, float]]) -> None:
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
        clock = RunningClock()
        before = clock.now()
        for span, waited_s in spans:
            now[0] += span
            after = clock.now(waited_s)
            unseen = span - waited_s
            expected = waited_s if unseen > event_loop._STOPPED_S else span
            assert after - before == pytest.approx(expected, abs=1e-6)
            before = after


def test_a_timer_waits_for_as_long_as_the_process_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, calls = ServerLoop(), list[str]()
    loop.call_later(60, calls.append, "early")
    real = time.monotonic
    monkeypatch.setattr(event_loop, "time", SimpleNamespace(monotonic=lambda: real() + 3600))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    loop.close()
    assert not calls


def test_few_descriptors_are_one_line_however_often_a_connection_waits(caplog: pytest.LogCaptureFixture) -> None:
    loop = ServerLoop()
    for _ in range(100):
        error = OSError(errno.EMFILE, "Too many open files")
        loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
    assert [record.getMessage() for record in caplog.records] == ["connections wait: Too many open files"]
    loop.call_exception_handler({"message": "a fault", "exception": ValueError("x")})
    assert caplog.records[-1].levelno == logging.ERROR
    loop.close()


def test_what_was_not_told_is_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    warning = RareWarning(logging.getLogger("quad.serve"))
    for _ in range(5):
        warning("closed %d", 1)
    monkeypatch.setattr("quad.serve.connections.rare_warning._EVERY_S", 0.0)
    warning("closed %d", 2)
    assert [record.getMessage() for record in caplog.records] == ["closed 1", "closed 2 (4 more since the last line)"]
