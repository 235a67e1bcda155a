"""Several clients, one pipeline: each gets the picture that it would get alone, and each request ends in one of four ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import BusyError, InputError, StoppedError, UsageError
from quad.core.pack import write_pack
from quad.runtime import QuadPipeline, Request, Scheduler, SchedulerOptions
from quad.runtime.bound import BoundSession
from quad.runtime.scheduler import SchedulerMetrics
from quad.runtime.ticket import StepEvent, Ticket
from tests.runtime.held import PATIENCE_S, Clock, HeldPipeline

Pixels = NDArray[np.uint8]


@pytest.fixture
def pipe(tiny_bundle: Path) -> HeldPipeline:
    opened = HeldPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
    assert isinstance(opened, HeldPipeline)
    return opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(pipe: HeldPipeline, clock: Clock) -> Iterator[Scheduler]:
    made = Scheduler(pipe, SchedulerOptions(max_queue=50, most_overtaken=3, clock=clock))
    yield made
    if pipe.held:
        pipe.free()
    made.close()


@pytest.fixture
def requests(picture: Pixels, mask: Pixels) -> list[Request]:
    """All tasks, a mix, the base by name, guidance on and off."""
    return [
        Request("the car", seed=1),
        Request("make it night", task="transform", image=picture, seed=2),
        Request("remove the car", task="removal", image=picture, mask_image=mask, seed=3),
        Request("the car", task="sketch", image=picture, seed=4, negative_prompt="night"),
        Request("the car", task="text-to-image", adapters={"transform": 0.5, "removal": 0.25}, seed=5),
        Request("the car", task="sketch", adapters={}, image=picture, guidance_scale=1.0, seed=6),
    ]


def _pixels(output: Any) -> Pixels:
    return np.asarray(output.images[0])


def _alone(bundle: Path, requests: list[Request], memory: str = "keep-all") -> list[Pixels]:
    pipe = QuadPipeline.from_pretrained(bundle, engine="ort", threads=1, memory=memory)
    return [_pixels(pipe.finish(pipe.prepare(request))) for request in requests]


def _ended(ticket: Ticket) -> list[Any]:
    """All its events, the last of them the state that it ended in."""
    return list(ticket.events())


@pytest.mark.parametrize(("memory", "rounds"), [("keep-all", 6), ("minimal", 1)])
def test_every_client_gets_what_it_would_get_alone(tiny_bundle: Path, requests: list[Request], memory: str, rounds: int) -> None:
    expected = _alone(tiny_bundle, requests, memory)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1, memory=memory)
    wrong: list[tuple[str, int]] = []
    served = 0

    def client(name: str, start: int, scheduler: Scheduler) -> None:
        nonlocal served
        order = [(start + i) % len(requests) for i in range(rounds * len(requests))]
        tickets = [(which, scheduler.submit(requests[which], priority=which % 2, client=name)) for which in order]
        for which, ticket in tickets:
            if (_pixels(ticket.result(PATIENCE_S)) != expected[which]).any():
                wrong.append((name, which))
            served += 1

    with Scheduler(pipe, SchedulerOptions(max_queue=1000, most_overtaken=5)) as scheduler:
        clients = [threading.Thread(target=client, args=(f"app {i}", i, scheduler)) for i in range(8)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        found = scheduler.metrics()
    assert wrong == []
    assert served == found.ended["done"] == 8 * rounds * len(requests)
    assert found.most_overtaken <= 5
    assert (found.ahead > served / 2) is (memory == "keep-all")
    assert pipe.prepare(requests[0]).run.timings_ms.keys() == {"text_encoder", "total"}  # it is nobody's now


def test_progress_step_by_step(scheduler: Scheduler, requests: list[Request]) -> None:
    ticket = scheduler.submit(requests[0], client="phone")
    events = _ended(ticket)
    assert [type(event) for event in events] == [StepEvent] * 3 + [str]
    assert [(event.index, event.total) for event in events[:-1]] == [(0, 3), (1, 3), (2, 3)]
    assert (events[-1], ticket.state, ticket.client, ticket.result().seed) == ("done", "done", "phone", 1)
    assert _ended(ticket) == events  # who asks later hears the same


def test_steps_are_counted_as_they_are_taken(scheduler: Scheduler, picture: Pixels) -> None:
    ticket = scheduler.submit(Request("", task="sketch", image=picture, strength=0.5, num_inference_steps=6))
    assert [event.total for event in _ended(ticket)[:-1]] == [3, 3, 3]


def test_cancelled_in_the_line_and_at_a_step(
    pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request], tiny_bundle: Path
) -> None:  # fmt: skip
    pipe.hold()
    running, waiting, last = (scheduler.submit(requests[i]) for i in (0, 1, 2))
    pipe.wait()
    assert (running.state, waiting.state) == ("running", "queued")
    assert waiting.cancel()
    assert waiting.state == "cancelled"
    assert not waiting.cancel()
    assert running.cancel()
    pipe.free()
    assert _ended(running)[1:] == ["cancelled"]
    for ticket in (running, waiting):
        with pytest.raises(StoppedError, match=rf"^request {ticket.id}: expected a picture, found it cancelled; ask for it again$"):
            ticket.result()
    np.testing.assert_array_equal(_pixels(last.result(PATIENCE_S)), _alone(tiny_bundle, requests)[2])
    assert not last.cancel()
    assert scheduler.metrics().ended == {"cancelled": 2, "done": 1}


def test_who_is_told_that_it_is_cancelled_gets_no_picture(pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    """Also after the last step."""
    pipe.hold()
    ticket = scheduler.submit(requests[0])
    pipe.wait()
    pipe.let(2)
    pipe.wait()
    pipe.wait()
    assert ticket.cancel()
    pipe.free()
    assert _ended(ticket)[-1] == "cancelled"


def test_a_clients_work_is_given_up_together(pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    pipe.hold()
    tickets = [scheduler.submit(requests[0], client=name) for name in ("gone", "here", "gone", "gone")]
    pipe.wait()
    assert scheduler.cancel_client("gone") == 3
    assert scheduler.cancel_client("nobody") == 0
    pipe.free()
    assert [_ended(ticket)[-1] for ticket in tickets] == ["cancelled", "done", "cancelled", "cancelled"]


def test_deadlines(pipe: HeldPipeline, scheduler: Scheduler, clock: Clock, requests: list[Request]) -> None:
    """In the line it is never begun; at work it ends at a step, as soon as the rest cannot be done in time."""
    pipe.hold()
    running = scheduler.submit(requests[0], deadline_s=10.0)
    pipe.wait()
    waiting, patient = scheduler.submit(requests[1], deadline_s=3.0), scheduler.submit(requests[2], deadline_s=50.0)
    clock.now_s += 2.0
    pipe.let()
    pipe.wait()
    assert (running.state, waiting.state) == ("running", "queued")
    clock.now_s += 4.5  # 3.5 s are left for one step of 4.5
    pipe.let()
    assert _ended(running)[-2:] == [StepEvent(1, 3, running._events[-1].timestep), "expired"]
    assert _ended(waiting) == ["expired"]
    pipe.free()
    assert _ended(patient)[-1] == "done"
    with pytest.raises(StoppedError, match="found it expired"):
        waiting.result()


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none(scheduler: Scheduler, deadline: float) -> None:
    with pytest.raises(UsageError, match=r"deadline_s: expected seconds from now, more than 0"):
        scheduler.submit(Request(), deadline_s=deadline)


def test_a_full_line_refuses_in_one_line(pipe: HeldPipeline, clock: Clock, requests: list[Request]) -> None:
    pipe.hold()
    scheduler = Scheduler(pipe, SchedulerOptions(max_queue=2, clock=clock))
    first = scheduler.submit(requests[0])
    pipe.wait()
    short, long = scheduler.submit(requests[0], deadline_s=1.0), scheduler.submit(requests[0])
    with pytest.raises(BusyError, match=r"^scheduler: expected at most 2 requests in line, found a full line; ask again later$"):
        scheduler.submit(requests[0])
    clock.now_s += 2.0
    another = scheduler.submit(requests[0])  # the short one's place
    assert short.state == "expired"
    pipe.free()
    scheduler.close(drain=True)
    assert {ticket.state for ticket in (first, long, another)} == {"done"}
    assert scheduler.metrics().refused == 1


def test_priorities_go_first_and_equals_are_grouped(pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    pipe.hold()
    order: list[int] = []
    first = scheduler.submit(requests[1])
    pipe.wait()
    for which, priority in ((2, 0), (1, 0), (2, 0), (3, 1)):
        ticket = scheduler.submit(requests[which], priority=priority)
        ticket.add_done_callback(lambda _, which=which: order.append(which))
    pipe.free()
    assert first.result(PATIENCE_S)
    scheduler.close(drain=True)
    assert order == [3, 2, 2, 1]


def test_the_next_is_prepared_while_this_one_denoises(
    pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    prepared, ready = list[Request](), threading.Event()
    prepare, read = pipe.prepare, list[str]()
    monkeypatch.setattr(pipe._store, "preload", read.append)

    def watched(request: Request, *more: Any) -> Any:
        found = prepare(request, *more)
        prepared.append(request)
        if request is requests[3]:
            ready.set()
        return found

    monkeypatch.setattr(pipe, "prepare", watched)
    pipe.hold()
    one = scheduler.submit(requests[2])
    pipe.wait()
    two = scheduler.submit(requests[3])
    pipe.let()
    pipe.wait()
    assert ready.wait(PATIENCE_S)
    assert one.state == "running"
    assert read == ["sketch"]
    pipe.free()
    assert two.result(PATIENCE_S)
    assert prepared == [requests[2], requests[3]]
    assert scheduler.metrics().ahead == 1


def test_adapters_are_pinned_from_preparation_to_the_end(
    pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    pins: list[str] = []

    @contextmanager
    def pinned(names: list[str]) -> Iterator[None]:
        pins.extend(names)
        yield
        for name in names:
            pins.remove(name)

    monkeypatch.setattr(pipe._store, "pinned", pinned)
    pipe.hold()
    one, two = scheduler.submit(requests[1]), scheduler.submit(requests[4])
    pipe.wait()
    assert pins == ["transform"]
    pipe.let()
    pipe.wait()
    assert sorted(pins) == ["removal", "transform", "transform"]
    two.cancel()
    assert pins == ["transform"]
    pipe.free()
    assert one.result(PATIENCE_S)
    assert pins == []


def test_one_graph_runs_at_a_time(tiny_bundle: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of threads is one for all graphs."""
    running, most, run = [0], [0], BoundSession.run

    def counted(self: BoundSession, inputs: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            return run(self, inputs)
        finally:
            running[0] -= 1

    monkeypatch.setattr(BoundSession, "run", counted)
    with Scheduler(QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)) as scheduler:
        tickets = [scheduler.submit(request) for request in requests * 5]
        assert all(ticket.result(PATIENCE_S) for ticket in tickets)
        assert scheduler.metrics().ahead
    assert most == [1]


def test_an_adapter_is_replaced_without_disturbing_what_runs(
    pipe: HeldPipeline, scheduler: Scheduler, ink: Any, tmp_path: Path, tiny_bundle: Path
) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    other = {name: -array for name, array in ink[1].items()}
    write_pack(tmp_path / "other.qpack", ink[0], other)
    asked = Request("the car", task="text-to-image", adapters={"pen": 1.0})
    expected = []
    for file in ("ink.qpack", "other.qpack"):
        alone = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
        alone.load_lora_weights(tmp_path / file, "pen")
        expected.append(_pixels(alone.finish(alone.prepare(asked))))
    with pytest.raises(UsageError, match="'pen'"):
        scheduler.submit(asked)
    assert scheduler.install(tmp_path / "ink.qpack", "pen") == "pen"
    pipe.hold()
    running = scheduler.submit(asked)
    pipe.wait()
    assert scheduler.install(tmp_path / "other.qpack", "pen") == "pen"
    later = scheduler.submit(asked)
    pipe.free()
    np.testing.assert_array_equal(_pixels(running.result(PATIENCE_S)), expected[0])
    np.testing.assert_array_equal(_pixels(later.result(PATIENCE_S)), expected[1])


def test_what_is_wrong_with_one_request_is_its_own(scheduler: Scheduler, requests: list[Request], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 'paint'"):
        scheduler.submit(Request(task="paint"))
    bad = scheduler.submit(Request(task="sketch", image=tmp_path / "nowhere.png"))
    good = scheduler.submit(requests[0])
    with pytest.raises(InputError, match=r"nowhere.png"):
        bad.result(PATIENCE_S)
    assert good.result(PATIENCE_S).seed == 1
    assert (bad.state, _ended(bad)) == ("failed", ["failed"])


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


def test_closing(pipe: HeldPipeline, requests: list[Request]) -> None:
    pipe.hold()
    scheduler = Scheduler(pipe)
    tickets = [scheduler.submit(requests[0]) for _ in range(3)]
    pipe.wait()
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    assert _ended(tickets[2]) == ["cancelled"]
    pipe.free()
    closer.join()
    assert {ticket.state for ticket in tickets} == {"cancelled"}
    with pytest.raises(BusyError, match="found it closing"):
        scheduler.submit(requests[0])
    scheduler.close(drain=True)  # again
    assert scheduler.metrics() == SchedulerMetrics({"cancelled": 3}, 0, 0, 0, 1, 0, 0, scheduler.metrics().waited_s,
                                                   scheduler.metrics().worked_s)  # fmt: skip


def test_a_result_that_takes_too_long(pipe: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    pipe.hold()
    ticket = scheduler.submit(requests[0])
    pipe.wait()
    with pytest.raises(TimeoutError, match=rf"request {ticket.id}: running after 0.01 s"):
        ticket.result(0.01)
    pipe.free()
    assert ticket.result(PATIENCE_S)
