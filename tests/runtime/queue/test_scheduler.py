"""Several clients, one pipeline: each gets the picture that it would get alone, and each request ends in one of four ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.core.errors import UsageError
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.storage.pack import write_pack
from quad.runtime import QuadPipeline, Request, Scheduler, SchedulerOptions
from quad.runtime.engines.engine import BoundSession
from quad.runtime.queue.ticket import StepEvent
from tests.conftest import Spy
from tests.runtime.held_pipeline import PATIENCE_S, HeldPipeline, Pixels, alone, ended, pixels


@pytest.mark.parametrize(("memory", "rounds"), [("keep-all", 6), ("minimal", 1)])
def test_every_client_gets_what_it_would_get_alone(tiny_bundle: Path, requests: list[Request], memory: str, rounds: int) -> None:
    expected = alone(tiny_bundle, requests, memory)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1, memory=memory)
    wrong: list[tuple[str, int]] = []
    served = 0

    def client(name: str, start: int, scheduler: Scheduler) -> None:
        nonlocal served
        order = [(start + i) % len(requests) for i in range(rounds * len(requests))]
        tickets = [(which, scheduler.submit(requests[which], priority=which % 2, client=name)) for which in order]
        for which, ticket in tickets:
            if (pixels(ticket.result(PATIENCE_S)) != expected[which]).any():
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
    assert pipe.prepare(requests[0]).clocks.timings_ms.keys() == {"text_encoder", "total"}  # it is nobody's now


def test_progress_step_by_step(scheduler: Scheduler, requests: list[Request]) -> None:
    ticket = scheduler.submit(requests[0], client="phone")
    events = ended(ticket)
    assert [type(event) for event in events] == [StepEvent] * 3 + [str]
    assert [(event.index, event.total) for event in events[:-1]] == [(0, 3), (1, 3), (2, 3)]
    assert (events[-1], ticket.state, ticket.client, ticket.result().seed) == ("done", "done", "phone", 1)
    assert ended(ticket) == events  # who asks later hears the same


def test_steps_are_counted_as_they_are_taken(scheduler: Scheduler, picture: Pixels) -> None:
    ticket = scheduler.submit(Request(prompt="", task="sketch", image=picture, strength=0.5, num_inference_steps=6))
    assert [event.total for event in ended(ticket)[:-1]] == [3, 3, 3]


def test_priorities_go_first_and_equals_are_grouped(held: HeldPipeline, scheduler: Scheduler, requests: list[Request]) -> None:
    held.hold()
    order: list[int] = []
    first = scheduler.submit(requests[1])
    held.wait()
    for which, priority in ((2, 0), (1, 0), (2, 0), (3, 1)):
        ticket = scheduler.submit(requests[which], priority=priority)
        ticket.add_done_callback(lambda _, which=which: order.append(which))
    held.free()
    assert first.result(PATIENCE_S)
    scheduler.close(drain=True)
    assert order == [3, 2, 2, 1]


def test_the_next_is_prepared_while_this_one_denoises(
    held: HeldPipeline, scheduler: Scheduler, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    prepared, ready = list[Request](), threading.Event()
    prepare, read = held.prepare, list[str]()
    monkeypatch.setattr(held.switch.store, "preload", read.append)

    def watched(request: Request, *more: Any) -> Any:
        found = prepare(request, *more)
        prepared.append(request)
        if request is requests[3]:
            ready.set()
        return found

    monkeypatch.setattr(held, "prepare", watched)
    held.hold()
    one = scheduler.submit(requests[2])
    held.wait()
    two = scheduler.submit(requests[3])
    held.let()
    held.wait()
    assert ready.wait(PATIENCE_S)
    assert one.state == "running"
    assert read == ["sketch"]
    held.free()
    assert two.result(PATIENCE_S)
    assert prepared == [requests[2], requests[3]]
    assert scheduler.metrics().ahead == 1


def test_adapters_are_pinned_from_preparation_to_the_end(
    held: HeldPipeline, scheduler: Scheduler, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    pins: list[str] = []

    @contextmanager
    def pinned(names: list[str]) -> Iterator[None]:
        pins.extend(names)
        yield
        for name in names:
            pins.remove(name)

    monkeypatch.setattr(held.switch.store, "pinned", pinned)
    held.hold()
    one, two = scheduler.submit(requests[1]), scheduler.submit(requests[4])
    held.wait()
    assert pins == ["transform"]
    held.let()
    held.wait()
    assert sorted(pins) == ["removal", "transform", "transform"]
    two.cancel()
    assert pins == ["transform"]
    held.free()
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


def test_a_request_in_line_takes_the_sampler_of_the_adapter_that_replaced_its_own(
    held: HeldPipeline, scheduler: Scheduler, requests: list[Request], ink: Any, tmp_path: Path
) -> None:
    """Never the steps of the one with the weights of the other."""
    for steps in (2, 5):
        brings = msgspec.structs.replace(
            ink[0], tasks={"paint": TaskSpec(adapter="ink", sampler=SamplerSpec(kind="euler", steps=steps), condition="none", mask="ones")}
        )
        write_pack(tmp_path / f"{steps}.qpack", brings, ink[1])
    scheduler.register(tmp_path / "2.qpack", "pen")
    held.hold()
    scheduler.submit(requests[0])
    held.wait()
    waiting = scheduler.submit(Request(task="paint"))
    scheduler.register(tmp_path / "5.qpack", "pen")
    held.free()
    assert waiting.result(PATIENCE_S).adapters == {"pen": 1.0}
    assert [event.total for event in ended(waiting)[:-1]] == [5] * 5


def test_an_adapter_is_replaced_without_disturbing_what_runs(
    held: HeldPipeline, scheduler: Scheduler, ink: Any, tmp_path: Path, tiny_bundle: Path
) -> None:
    write_pack(tmp_path / "ink.qpack", *ink)
    other = {name: -array for name, array in ink[1].items()}
    write_pack(tmp_path / "other.qpack", ink[0], other)
    asked = Request(prompt="the car", task="text-to-image", adapters={"pen": 1.0})
    expected = []
    for file in ("ink.qpack", "other.qpack"):
        alone = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
        alone.load_lora_weights(tmp_path / file, "pen")
        expected.append(pixels(alone.finish(alone.prepare(asked))))
    with pytest.raises(UsageError, match="'pen'"):
        scheduler.submit(asked)
    assert scheduler.register(tmp_path / "ink.qpack", "pen") == "pen"
    held.hold()
    running = scheduler.submit(asked)
    held.wait()
    assert scheduler.register(tmp_path / "other.qpack", "pen") == "pen"
    later = scheduler.submit(asked)
    held.free()
    np.testing.assert_array_equal(pixels(running.result(PATIENCE_S)), expected[0])
    np.testing.assert_array_equal(pixels(later.result(PATIENCE_S)), expected[1])


@pytest.mark.parametrize("memory", ["keep-all", "balanced"])
def test_the_next_adapter_is_there_before_its_picture_begins(tiny_bundle: Path, requests: list[Request], spy: Spy, memory: str) -> None:
    """Between the last step of a picture and the first of the next one nothing is read, and no slot is put into a graph one by one."""
    first, second = requests[1], requests[3]
    expected = alone(tiny_bundle, [second], memory)
    held = HeldPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1, memory=memory)
    with Scheduler(held) as scheduler:
        held.hold()
        tickets = [scheduler.submit(request) for request in (first, second)]
        held.wait()
        held.let()
        held.wait()  # the first step is over
        scheduler._preparer.submit(int).result(PATIENCE_S)  # and so is what it began
        misses = held.switch.store.metrics().misses
        put = spy(BoundSession, "_put_all", lambda _session, _rack, _prepared, names: {name for name in names if "lora" in name})
        held.free()
        pictures = [pixels(ticket.result(PATIENCE_S)) for ticket in tickets]
        assert held.switch.active == {"sketch": 1.0}
    assert put
    assert set().union(*put) == set()
    assert held.switch.store.metrics().misses == misses
    np.testing.assert_array_equal(pictures[1], expected[0])
