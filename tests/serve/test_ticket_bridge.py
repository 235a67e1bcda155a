"""Following a request: its steps in order for every reader, and its work freed when the last one leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from quad.core.errors import BackendError, QuadError
from quad.serve import QuadClient
from quad.serve.limits import Limits
from tests.serve.conftest import Serve
from tests.serve.fake import an_output


def _events(stream: HTTPResponse) -> Iterator[tuple[str, dict[str, object]]]:
    kind = ""
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def test_every_reader_hears_every_step_in_order_however_late_it_comes(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    ticket = served.tickets[0]
    with served.http.answer("GET", f"/v1/requests/{key}/events") as early:
        heard = _events(early)
        for index in range(2):
            ticket.step()
            assert next(heard) == ("step", {"index": index, "total": 4, "timestep": 100.0})
        with served.http.answer("GET", f"/v1/requests/{key}/events") as late:
            ticket.step()
            ticket.end("done", an_output())
            rest, whole = list(heard), list(_events(late))
    assert [kind for kind, _ in whole] == ["step"] * 3 + ["end"]
    assert whole[2:] == rest
    end = whole[-1][1]
    assert (end["state"], end["steps_done"], end["steps_total"], end["seed"], end["notes"]) == ("done", 3, 4, 7, ["a note"])
    with served.http.answer("GET", f"/v1/requests/{key}/events") as after:
        assert list(_events(after)) == whole


def test_a_state_is_told_at_every_stage(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    ticket, where = served.tickets[0], f"/v1/requests/{key}"
    assert served.call("GET", where)[1]["state"] == "queued"
    status, refused = served.call("GET", f"{where}/image")
    assert (status, refused["error"]) == (409, f"request {key}: expected one that is done, found queued; wait for its end")
    with served.http.answer("GET", f"{where}/events") as stream:
        heard = _events(stream)
        ticket.step()
        next(heard)
        assert served.call("GET", where)[1]["state"] == "running"
        ticket.end("failed", BackendError("engine: expected a picture, found NaN; try less"))
        assert next(heard)[1]["error"] == {"error": "engine: expected a picture, found NaN; try less", "kind": "BackendError"}
    assert served.call("GET", f"{where}/image") == (
        409,
        {"error": "engine: expected a picture, found NaN; try less", "kind": "BackendError"},
    )


def test_a_reader_that_leaves_frees_the_work_but_not_where_another_one_stays(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    ticket = served.tickets[0]
    with served.http.answer("GET", f"/v1/requests/{key}/events") as stays:
        with served.http.answer("GET", f"/v1/requests/{key}/events"):
            pass
        ticket.step()
        assert next(_events(stays))[0] == "step"
        assert ticket.state == "running"
    ticket.wait_until("cancelled")


def test_a_wait_for_the_picture_ends_with_it(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    found: list[object] = []
    waiter = threading.Thread(target=lambda: found.append(served.call("GET", f"/v1/requests/{key}/image?wait=60")))
    waiter.start()
    served.tickets[0].step()
    served.tickets[0].end("done", an_output())
    waiter.join()
    assert found[0][0] == 200  # type: ignore[index]
    assert found[0][1].startswith(b"\x89PNG")  # type: ignore[index]


def test_who_leaves_while_waiting_for_the_picture_frees_the_work_who_waited_long_enough_does_not(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    assert served.call("GET", f"/v1/requests/{key}/image?wait=0.1")[0] == 409
    assert served.tickets[0].state == "queued"
    connection = served.http._connection()
    connection.request("GET", f"/v1/requests/{key}/image?wait=60")
    connection.close()
    served.tickets[0].wait_until("cancelled")


def test_what_nobody_asks_after_is_given_up_and_forgotten(serve: Serve) -> None:
    served = serve(limits=Limits(lease_s=0.1))
    key = served.ask()
    served.tickets[0].wait_until("cancelled")
    assert served.call("GET", f"/v1/requests/{key}")[0] == 404


def test_a_request_that_runs_too_long_is_told_why_it_ended(serve: Serve) -> None:
    served = serve(limits=Limits(time_limit_s=0.1))
    key = served.ask()
    with served.http.answer("GET", f"/v1/requests/{key}/events") as stream:
        served.tickets[0].step()
        *_, end = _events(stream)
    assert end[1]["state"] == "cancelled"
    assert end[1]["error"] == {
        "error": "request: expected at most 0.1 s from its start, found more; ask for fewer steps",
        "kind": "StoppedError",
    }


def test_finished_pictures_are_kept_no_longer_than_allowed(serve: Serve) -> None:
    served = serve(limits=Limits(max_finished=1))
    older, newest = (f"/v1/requests/{served.ask()}/image?wait=30" for _ in range(2))
    for ticket, where in zip(served.tickets, (older, newest), strict=True):
        ticket.end("done", an_output())
        assert served.call("GET", where)[0] == 200  # its end has been heard of
    while served.call("GET", older)[0] != 404:
        pass
    assert served.call("GET", newest)[0] == 200


def test_deleting_frees_the_work_and_ends_the_streams(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    with served.http.answer("GET", f"/v1/requests/{key}/events") as stream:
        assert served.call("DELETE", f"/v1/requests/{key}")[0] == 204
        assert [kind for kind, _ in _events(stream)] == ["end"]
    assert served.tickets[0].state == "cancelled"
    assert served.call("GET", f"/v1/requests/{key}")[0] == 404
    assert served.service.budget.held_bytes == 0


def test_a_client_gets_the_servers_errors_as_its_own_and_its_callbacks_errors_free_the_work(serve: Serve) -> None:
    served = serve()
    client = served.client()

    def call(**options: object) -> list[BaseException]:
        found: list[BaseException] = []

        def run() -> None:
            try:
                client("x", **options)  # type: ignore[arg-type]
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not served.tickets or served.tickets[-1].state != "queued":
            pass
        served.tickets[-1].step()
        if not options:
            served.tickets[-1].end("failed", BackendError("engine: expected numbers, found NaN; try less"))
        thread.join()
        return found

    def stop(_client: QuadClient, index: int, _timestep: float, _kwargs: dict[str, object]) -> None:
        raise KeyError(index)

    (told,) = call()
    assert type(told) is BackendError
    assert str(told) == "engine: expected numbers, found NaN; try less"
    (own,) = call(callback_on_step_end=stop)
    assert isinstance(own, KeyError)
    served.tickets[-1].wait_until("cancelled")


def test_a_stream_that_breaks_off_before_its_first_event_is_one_line(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    monkeypatch.setattr("quad.serve.client._events", lambda _wire, _stream: iter(()))
    with pytest.raises(BackendError, match="a stream that broke off"):
        serve().client()("x")


def test_a_stop_ends_what_runs_and_says_so(serve: Serve) -> None:
    served = serve()
    key = served.ask()
    with served.http.answer("GET", f"/v1/requests/{key}/events") as stream:
        served.tickets[0].step()
        heard = _events(stream)
        next(heard)
        served.stop()
        (end,) = heard
    assert end[1]["error"]["kind"] == "StoppedError"  # type: ignore[index]
    assert "one that was stopped" in end[1]["error"]["error"]  # type: ignore[index]
    assert served.tickets[0].state == "cancelled"
    with pytest.raises(QuadError):
        served.client().health  # noqa: B018
