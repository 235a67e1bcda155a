"""Whoever has no token takes no place from those who have one, and nobody reads what he goes on to send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from quad.serve.limits import Limits
from tests.serve.conftest import Serve, Served

TOKEN = "quad-0123456789"
GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def _connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])), 30)


@pytest.fixture
def connections() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _is_closed(stranger: socket.socket) -> bool:
    try:
        return not stranger.recv(1)
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("n_strangers", [4, 5, 40])
def test_the_owner_gets_in_however_many_strangers_there_are(serve: Serve, connections: ExitStack, n_strangers: int) -> None:
    served = serve(token=TOKEN, limits=Limits(max_strangers=4, max_connections=2, head_timeout_s=600))
    strangers = [connections.enter_context(_connect(served)) for _ in range(n_strangers)]
    for _ in range(3):
        assert served.call("GET", "/health")[0] == 200
    for stranger in strangers[: max(0, n_strangers - 4)]:  # the oldest ones went, without a word
        assert _is_closed(stranger)


def test_a_stranger_is_answered_once_and_closed_and_his_body_is_not_read(serve: Serve, connections: ExitStack) -> None:
    served = serve(token=TOKEN)
    for head in (GET, b"POST /v1/requests HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"):
        stranger = connections.enter_context(_connect(served))
        stranger.sendall(head)
        answer = b""
        while piece := stranger.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer.lower()


def test_callers_are_counted_apart_and_an_idle_one_makes_room(serve: Serve, connections: ExitStack) -> None:
    served = serve(limits=Limits(max_connections=2))
    idle = []
    for _ in range(3):
        idle.append(connections.enter_context(socket.socket(socket.AF_UNIX)))
        idle[-1].settimeout(30)
        idle[-1].connect(served.address)
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: q\r\n\r\n")
        assert idle[-1].recv(65536).startswith(b"HTTP/1.1 200")
    assert served.call("GET", "/health")[0] == 200
    while idle[0].recv(65536):
        pass


def test_who_waits_for_a_picture_is_not_idle(serve: Serve, connections: ExitStack) -> None:
    served = serve(limits=Limits(max_connections=1))
    key = served.ask()
    waiting = connections.enter_context(socket.socket(socket.AF_UNIX))
    waiting.settimeout(30)
    waiting.connect(served.address)
    waiting.sendall(f"GET /v1/requests/{key}/events HTTP/1.1\r\nHost: q\r\n\r\n".encode())
    assert waiting.recv(17) == b"HTTP/1.1 200 OK\r\n"
    late = connections.enter_context(socket.socket(socket.AF_UNIX))
    late.settimeout(30)
    late.connect(served.address)
    assert _is_closed(late)
    assert served.tickets[0].state == "queued"


def test_strangers_and_callers_are_told_apart_in_the_metrics(serve: Serve, connections: ExitStack) -> None:
    served = serve(token=TOKEN, real=True, limits=Limits(max_strangers=2))
    for _ in range(3):
        connections.enter_context(_connect(served))
    facts = dict(line.split(" ") for line in served.call("GET", "/metrics")[1].decode().splitlines() if not line.startswith("#"))
    assert facts["quad_strangers_closed_total"] == "2"  # the caller was one, until his call was read
    assert facts['quad_connections_open{kind="callers"}'] == "1"
    assert int(facts['quad_connections_open{kind="strangers"}']) <= 2
