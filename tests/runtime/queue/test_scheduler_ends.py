"""How a request ends: done, failed, cancelled, expired, or refused before it began."""

from __future__ import annotations

import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.core.errors import BackendError, BusyError, InputError, StoppedError, UsageError
from quad.runtime import Request, Scheduler, SchedulerOptions
from quad.runtime.queue.scheduler import SchedulerMetrics
from quad.runtime.queue.ticket import StepEvent, Ticket
from quad.runtime.stages import Prepared
from tests.runtime.held_pipeline import PATIENCE_S, Clock, HeldPipeline, alone, ended, pixels


def test_cancelled_in_the_line_and_at_a_step(
    held: HeldPipeline, scheduler: Scheduler, requests: list[Request], tiny_bundle: Path
) -> None:  # fmt: skip
    held.hold()
    running, waiting, last = (scheduler.submit(requests[i]) for i in (0, 1, 2))
    held.wait()
    assert (running.state, waiting.state) == ("running", "queued")
    assert waiting.cancel()
    assert waiting.state == "cancelled"
    assert not waiting.cancel()
    assert running.cancel()
    held.free()
    assert ended(running)[1:] == ["cancelled"]
    for ticket in (running, waiting):
        with pytest.raises(StoppedError, match=rf"^request {ticket.id}: expected a picture, found it cancelled; ask for it again$"):
            ticket.result()
    np.testing.assert_array_equal(pixels(last.result(PATIENCE_S)), alone(tiny_bundle, requests)[2])
    assert not last.cancel()
    assert scheduler.metrics().ended == {"cancelled": 2, "done": 1}


def test_who_is_told_that_it_is_cancelled_gets_no_picture(held: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    """Also after the last step."""
    held.hold()
    ticket = scheduler.submit(requests[0])
    held.wait()
    held.let(2)
    held.wait()
    held.wait()
    assert ticket.cancel()
    held.free()
    assert ended(ticket)[-1] == "cancelled"


def test_a_clients_work_is_given_up_together(held: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    held.hold()
    tickets = [scheduler.submit(requests[0], client=name) for name in ("gone", "here", "gone", "gone")]
    held.wait()
    assert scheduler.cancel_client("gone") == 3
    assert scheduler.cancel_client("nobody") == 0
    held.free()
    assert [ended(ticket)[-1] for ticket in tickets] == ["cancelled", "done", "cancelled", "cancelled"]


def test_deadlines(held: HeldPipeline, scheduler: Scheduler, clock: Clock, requests: list[Request]) -> None:
    """In the line it is never begun; at work it ends at a step, as soon as the rest cannot be done in time."""
    held.hold()
    running = scheduler.submit(requests[0], deadline_s=10.0)
    held.wait()
    waiting, patient = scheduler.submit(requests[1], deadline_s=3.0), scheduler.submit(requests[2], deadline_s=50.0)
    clock.now_s += 2.0
    held.let()
    held.wait()
    assert (running.state, waiting.state) == ("running", "queued")
    clock.now_s += 4.5  # 3.5 s are left for one step of 4.5
    held.let()
    assert ended(running)[-2:] == [StepEvent(1, 3, running._events[-1].timestep), "expired"]
    assert ended(waiting) == ["expired"]
    held.free()
    assert ended(patient)[-1] == "done"
    with pytest.raises(StoppedError, match="found it expired"):
        waiting.result()


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none(scheduler: Scheduler, deadline: float) -> None:
    with pytest.raises(UsageError, match=r"deadline_s: expected seconds from now, more than 0"):
        scheduler.submit(Request(), deadline_s=deadline)


def test_a_full_line_refuses_in_one_line(held: HeldPipeline, clock: Clock, requests: list[Request]) -> None:
    held.hold()
    scheduler = Scheduler(held, SchedulerOptions(max_queue=2, clock=clock))
    first = scheduler.submit(requests[0])
    held.wait()
    short, long = scheduler.submit(requests[0], deadline_s=1.0), scheduler.submit(requests[0])
    with pytest.raises(BusyError, match=r"^scheduler: expected at most 2 requests in line, found a full line; ask again later$"):
        scheduler.submit(requests[0])
    clock.now_s += 2.0
    another = scheduler.submit(requests[0])  # the short one's place
    assert short.state == "expired"
    held.free()
    scheduler.close(drain=True)
    assert {ticket.state for ticket in (first, long, another)} == {"done"}
    assert scheduler.metrics().refused == 1


def test_what_is_wrong_with_one_request_is_its_own(scheduler: Scheduler, requests: list[Request], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 'paint'"):
        scheduler.submit(Request(task="paint"))
    bad = scheduler.submit(Request(task="sketch", image=tmp_path / "nowhere.png"))
    good = scheduler.submit(requests[0])
    with pytest.raises(InputError, match=r"nowhere.png"):
        bad.result(PATIENCE_S)
    assert good.result(PATIENCE_S).seed == 1
    assert (bad.state, ended(bad)) == ("failed", ["failed"])


def test_a_clients_callback_cannot_stop_the_others(scheduler: Scheduler, requests: list[Request], caplog: Any) -> None:
    called: list[str] = []

    def broken(_: Ticket) -> None:
        raise RuntimeError("a client's own")

    ticket = scheduler.submit(requests[0])
    ticket.add_done_callback(broken)
    assert ticket.result(PATIENCE_S)
    second = scheduler.submit(requests[0])
    assert second.result(PATIENCE_S)
    second.add_done_callback(lambda ended: called.append(ended.state))  # it has ended: at once
    assert called == ["done"]
    assert "its callback failed" in caplog.text


def test_a_callback_that_leaves_its_thread_stops_nobody(scheduler: Scheduler, requests: list[Request], caplog: Any) -> None:
    first = scheduler.submit(requests[0])
    first.add_done_callback(lambda _: sys.exit(1))
    assert first.result(PATIENCE_S)
    assert scheduler.submit(requests[0]).result(PATIENCE_S)
    assert "its callback failed" in caplog.text


def test_a_library_that_panics_ends_one_request(
    held: HeldPipeline, scheduler: Scheduler, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As libraries in Rust raise it."""

    prepare = held.prepare

    def panics(request: Request) -> Prepared:
        if request is requests[1]:
            raise Panic("index out of bounds")
        return prepare(request)

    monkeypatch.setattr(held, "prepare", panics)
    bad, good = scheduler.submit(requests[1]), scheduler.submit(requests[0])
    says = rf"^request {bad.id}: expected a picture, found Panic: index out of bounds; report it with the request$"
    with pytest.raises(BackendError, match=says):
        bad.result(PATIENCE_S)
    assert good.result(PATIENCE_S)


@pytest.mark.parametrize("priority", ["high", None, 0.5, float("nan")])
def test_a_priority_that_is_none(scheduler: Scheduler, requests: list[Request], priority: Any) -> None:
    with pytest.raises(UsageError, match="priority: expected a whole number, found"):
        scheduler.submit(requests[0], priority=priority)
    assert scheduler.submit(requests[0]).result(PATIENCE_S)


def test_an_idle_scheduler_holds_nothing_of_a_picture(scheduler: Scheduler, picture: Any) -> None:
    class Owned(np.ndarray):
        """An array that can be referred to weakly."""

    given = picture.view(Owned)
    known = weakref.ref(given)
    ticket = scheduler.submit(Request(task="sketch", image=given))
    scheduler.submit(Request(task="sketch", image=given)).result(PATIENCE_S)
    assert ticket.result(PATIENCE_S)
    del given, ticket
    for _ in range(int(PATIENCE_S * 1000)):  # until the worker waits again
        if known() is None:
            break
        threading.Event().wait(0.001)
    assert known() is None


def test_closing(held: HeldPipeline, requests: list[Request]) -> None:
    held.hold()
    scheduler = Scheduler(held)
    tickets = [scheduler.submit(requests[0]) for _ in range(3)]
    held.wait()
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    assert ended(tickets[2]) == ["cancelled"]
    held.free()
    closer.join()
    assert {ticket.state for ticket in tickets} == {"cancelled"}
    with pytest.raises(BusyError, match="found it closing"):
        scheduler.submit(requests[0])
    scheduler.close(drain=True)  # again
    metrics = scheduler.metrics()
    assert metrics == SchedulerMetrics(
        ended={"cancelled": 3},
        refused=0,
        waiting=0,
        running=0,
        switches=1,
        ahead=0,
        most_overtaken=0,
        waited_s=metrics.waited_s,
        worked_s=metrics.worked_s,
    )


def test_a_result_that_takes_too_long(held: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    held.hold()
    ticket = scheduler.submit(requests[0])
    held.wait()
    with pytest.raises(TimeoutError, match=rf"request {ticket.id}: running after 0.01 s"):
        ticket.result(0.01)
    held.free()
    assert ticket.result(PATIENCE_S)
