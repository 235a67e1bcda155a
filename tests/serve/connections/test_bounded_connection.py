"""Who does not read what was answered: neither a connection nor a picture is held for him."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

from quad.core.errors import QuadError
from quad.runtime.stages import PipelineOutput
from quad.serve.limits import Limits
from quad.serve.operations import stream
from tests.conftest import Spy
from tests.serve.conftest import Serve, Served

SIDE = 800  # of noise: more than a socket takes at once


def _picture(served: Served) -> str:
    """Where a finished picture is found."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
    where = f"/v1/requests/{served.ask()}/image"
    served.tickets[-1].end(
        "done", PipelineOutput(images=[noise], notes=(), timings_ms={"total": 1.0}, task="text-to-image", adapters={}, seed=7)
    )
    assert served.call("GET", f"{where}?wait=30")[0] == 200
    return where


@contextmanager
def _asked(served: Served, where: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        one.connect(served.address)
        one.sendall(f"GET {where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert one.recv(1) == b"H"
        yield one


@pytest.mark.parametrize("then", [b"", b"G", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\0\r\n\r\n"])
def test_an_answer_that_nobody_reads_ends_the_connection_whatever_else_is_sent(serve: Serve, then: bytes) -> None:
    served = serve(limits=Limits(max_connections=1, head_timeout_s=0.2, body_timeout_s=0.2))
    with _asked(served, _picture(served)) as one:
        one.sendall(then)
        while True:  # its place is given to another one
            try:
                served.http.fetch("GET", "/health")
                break
            except QuadError:
                pass
        whole = 0
        while data := one.recv(2**20):
            whole += len(data)
    assert whole < 3 * SIDE**2


def test_pictures_that_are_fetched_at_once_are_bounded_and_the_others_wait(serve: Serve, spy: Spy) -> None:
    encoded = spy(stream, "to_png")
    served = serve(limits=Limits(max_fetches=2))
    where = _picture(served)
    encoded.clear()
    with ExitStack() as stack:
        first, _ = (stack.enter_context(_asked(served, where)) for _ in range(2))
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.settimeout(30)
        waiting.connect(served.address)
        waiting.sendall(f"GET {where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert served.call("GET", "/v1/adapters")[0] == 200  # on the threads that write pictures, and later
        assert len(encoded) == 2
        first.close()
        assert waiting.recv(1) == b"H"
    assert len(encoded) == 3


def test_a_body_that_goes_wrong_after_its_call_was_answered_is_no_fault(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    head = b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    with caplog.at_level(logging.ERROR), socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        one.connect(served.address)
        one.sendall(head + b"3\r\nabc\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 415")
        one.sendall(b"no chunk\r\n\r\n")
        while one.recv(65536):
            pass
    assert not caplog.records


@pytest.mark.parametrize("then", [b"no chunk\r\n\r\n", b"3\r\nabc\r\nno chunk\r\n\r\n"])
def test_a_body_that_goes_wrong_before_its_call_was_answered_has_one_answer_and_is_no_fault(
    then: bytes, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    head = b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(5):
        with caplog.at_level(logging.WARNING), socket.socket(socket.AF_UNIX) as one:
            one.settimeout(30)
            one.connect(served.address)
            one.sendall(head + then)
            answer = b"".join(iter(lambda one=one: one.recv(65536), b""))  # type: ignore[misc]
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"expected HTTP/1.1" in answer
    assert [record.getMessage() for record in caplog.records] == ["a connection was closed: what it sent is no HTTP/1.1"]


def test_a_server_that_stops_waits_for_no_reader_and_says_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    where = _picture(served)
    with caplog.at_level(logging.WARNING), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(_asked(served, where))
        served.stop()
        served.thread.join(30)
        assert not served.thread.is_alive()
    assert not caplog.records


def test_a_reader_that_takes_too_long_for_the_whole_of_a_picture_loses_it(serve: Serve) -> None:
    served = serve(limits=Limits(body_timeout_s=1.0))
    with _asked(served, _picture(served)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        whole = 1
        with suppress(ConnectionResetError):
            while data := one.recv(1024):  # some of it now and then
                whole += len(data)
                time.sleep(0.02)
    assert whole < 3 * SIDE**2
