"""Every limit by itself: what is over it is refused with one line of JSON, what is at it passes."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from PIL import Image

from quad.runtime.conditioning.mask import MAX_GROW_PX
from quad.serve.api import LONGEST_PROMPT, NewRequest
from quad.serve.error_response import HttpError
from quad.serve.limits import Budget, Limits
from tests.serve.conftest import Serve, Served


def _png(width: int, height: int) -> str:
    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def _bomb(side: int) -> str:
    """A PNG whose header promises side x side pixels, with nothing behind it."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT")
    whole = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(whole)).decode()


def _refused(answer: tuple[int, Any], status: int, says: str) -> None:
    assert answer[0] == status, answer
    assert set(answer[1]) == {"error", "kind"}
    assert says in answer[1]["error"]
    assert "\n" not in answer[1]["error"]


def test_a_body_over_its_size_is_refused_by_its_header_and_as_it_comes(serve: Serve) -> None:
    served = serve(limits=Limits(max_body_bytes=1000))
    at, over = (json.dumps({"prompt": ""}).ljust(n).encode() for n in (1000, 1001))
    assert served.call("POST", "/v1/requests", at)[0] == 202
    _refused(served.call("POST", "/v1/requests", over), 413, "at most 1000 bytes, found 1001")
    chunked = b"3e9\r\n" + over + b"\r\n0\r\n\r\n"
    said = _raw(
        served, b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    )
    assert said.startswith(b"HTTP/1.1 413")
    assert len(served.tickets) == 1


def test_a_table_without_end_is_refused_before_it_is_made(serve: Serve) -> None:
    served = serve()
    most = json.dumps({"prompt": ":" * LONGEST_PROMPT, "negative_prompt": ":" * LONGEST_PROMPT}).encode()
    assert served.call("POST", "/v1/requests", most)[0] == 202
    table = {f"a{number}": 1 for number in range(20_000)}
    _refused(served.call("POST", "/v1/requests", {"adapters": table}), 400, "colons, found 20001")


def test_a_promised_large_body_is_refused_before_it_is_sent(serve: Serve) -> None:
    head = b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    assert _raw(serve(), head).startswith(b"HTTP/1.1 413")


def test_pictures_are_refused_by_their_header(serve: Serve) -> None:
    served = serve(limits=Limits(max_pixels=64))
    for name in ("image", "mask_image"):
        assert served.call("POST", "/v1/requests", {name: _png(8, 8)})[0] == 202
        _refused(served.call("POST", "/v1/requests", {name: _png(8, 9)}), 400, "at most 64 pixels, found 8x9")
        _refused(served.call("POST", "/v1/requests", {name: _bomb(2000)}), 400, "at most 64 pixels, found 2000x2000")
        for side in (12_000, 60_000):  # where Pillow itself would warn, or refuse
            assert served.call("POST", "/v1/requests", {name: _bomb(side)})[0] == 400
    assert served.service.budget.held_bytes == 2 * 64  # grey: a byte a pixel


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_formats_that_the_api_does_not_name_are_refused(serve: Serve, kind: str) -> None:
    data = io.BytesIO()
    Image.new("L", (4, 4)).save(data, kind)
    _refused(
        serve().call("POST", "/v1/requests", {"image": base64.b64encode(data.getvalue()).decode()}), 400, "a picture (PNG, JPEG, WebP)"
    )


def test_the_queue_is_bounded_and_a_place_is_given_back(serve: Serve) -> None:
    served = serve(limits=Limits(max_queue=2))
    served.ask()
    key = served.ask()
    _refused(served.call("POST", "/v1/requests", {}), 503, "queue: expected fewer than 2 requests")
    assert served.call("DELETE", f"/v1/requests/{key}")[0] == 204
    served.tickets[1].wait_until("cancelled")
    served.call("GET", "/health")
    assert served.call("POST", "/v1/requests", {})[0] == 202


def test_clients_data_together_is_bounded(serve: Serve) -> None:
    served = serve(limits=Limits(max_held_bytes=16 * 16 * 5))
    whole = {"image": _png(16, 16)}
    served.ask(**whole)
    _refused(served.call("POST", "/v1/requests", {"image": _png(16, 32)}), 503, "bytes held for all clients")
    assert served.service.budget.held_bytes == 16 * 16


def test_steps_are_bounded_whoever_asks_for_them(serve: Serve) -> None:
    served = serve(limits=Limits(max_steps=5))
    assert served.call("POST", "/v1/requests", {"num_inference_steps": 5})[0] == 202
    _refused(served.call("POST", "/v1/requests", {"num_inference_steps": 6}), 400, "at most 5 on this server, found 6")
    _refused(serve(limits=Limits(max_steps=2)).call("POST", "/v1/requests", {}), 400, "at most 2 on this server, found 3")


def test_streams_are_bounded(serve: Serve) -> None:
    served = serve(limits=Limits(max_streams=1))
    first, second = served.ask(), served.ask()
    with served.http.answer("GET", f"/v1/requests/{first}/events"):
        _refused(served.call("GET", f"/v1/requests/{second}/events"), 503, "fewer than 1 open")
        _refused(served.call("GET", f"/v1/requests/{second}/image?wait=5"), 503, "fewer than 1 open")
    served.tickets[0].wait_until("cancelled")


def test_connections_are_bounded(serve: Serve) -> None:
    served = serve(limits=Limits(max_connections=2, head_timeout_s=2.0))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    start = time.monotonic()
    for one in idle:
        one.settimeout(30)
        one.connect(served.address)
    assert idle[0].recv(1) == b""  # it has been idle longest
    assert time.monotonic() - start < 2.0  # its place was taken: the time for its head is not over
    assert idle[2].recv(1) == b""
    for one in idle:
        one.close()


@pytest.mark.parametrize(
    ("sent", "limits"),
    [
        (b"GET /health HTTP/1.1\r\nHo", Limits(head_timeout_s=0.2)),
        (b"", Limits(head_timeout_s=0.2)),
    ],
)
def test_a_head_that_does_not_come_ends_the_connection(serve: Serve, sent: bytes, limits: Limits) -> None:
    assert _raw(serve(limits=limits), sent) == b""


def test_a_head_that_drips_ends_the_connection_though_something_was_answered_before(serve: Serve) -> None:
    served = serve(limits=Limits(head_timeout_s=0.2))
    said = _raw(served, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea")
    assert said.startswith(b"HTTP/1.1 200")
    assert said.count(b"HTTP/1.1") == 1


def test_a_body_that_does_not_come_is_refused(serve: Serve) -> None:
    head = b"POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    said = _raw(serve(limits=Limits(body_timeout_s=0.2)), head)
    assert said.startswith(b"HTTP/1.1 408")
    assert b"all of it within 0.2 s" in said


def test_a_long_head_is_refused_as_json(serve: Serve) -> None:
    said = _raw(serve(), b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000)
    assert b'"kind":"InputError"' in said
    assert said.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status", "says"),
    [
        ("GET", "/v1/nothing", None, "application/json", 404, "'GET /v1/nothing'"),
        ("PATCH", "/v1/requests", None, "application/json", 405, "'PATCH /v1/requests'"),
        ("GET", "/v1/requests/ghost", None, "application/json", 404, "'ghost'"),
        ("DELETE", "/v1/requests/ghost", None, "application/json", 404, "'ghost'"),
        ("GET", "/v1/requests/ghost/events", None, "application/json", 404, "'ghost'"),
        ("POST", "/v1/requests", b"{}", "text/plain", 415, "Content-Type: expected application/json"),
        ("POST", "/v1/requests", b"{", "application/json", 400, "expected JSON"),
        ("POST", "/v1/requests", b'{"prompt": "\xff"}', "application/json", 400, "body:"),
        ("POST", "/v1/requests", b"[" * 100_000, "application/json", 400, "body:"),
        ("POST", "/v1/requests", {"promt": "x"}, "application/json", 400, "promt"),
        ("POST", "/v1/requests", {"image": "%%%"}, "application/json", 400, "base64"),
        ("POST", "/v1/requests", {"image": ""}, "application/json", 400, "image: expected a picture"),
        ("POST", "/v1/requests", {"seed": -1}, "application/json", 400, "seed"),
        ("POST", "/v1/requests", {"task": "paint"}, "application/json", 400, "expected one of removal, sketch"),
        ("POST", "/v1/requests", {"adapters": {"ghost": 1}}, "application/json", 400, "'ghost'"),
        ("POST", "/v1/adapters/ghost/preload", None, "application/json", 404, "'ghost'"),
        ("POST", "/v1/adapters/sketch/install", None, "application/json", 409, "--store"),
        ("PUT", "/v1/adapters/ink", b"", "application/octet-stream", 403, "--allow-uploads"),
        ("DELETE", "/v1/adapters/sketch", None, "application/json", 403, "--allow-uploads"),
    ],
)
def test_what_is_wrong_is_one_line_of_json(serve: Serve, method: str, path: str, body: Any, kind: str, status: int, says: str) -> None:
    _refused(serve().call(method, path, body, kind), status, says)


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", "1e999", "٣"])
def test_a_wait_is_a_number_of_seconds(serve: Serve, wait: str) -> None:
    served = serve()
    _refused(served.call("GET", f"/v1/requests/{served.ask()}/image?wait={quote(wait)}"), 400, "wait: expected seconds, 0 to 60")


def test_a_budget_gives_back_what_a_block_took_but_what_was_kept() -> None:
    budget = Budget(100)
    with budget.account() as account:
        account.take(60)
        with pytest.raises(HttpError, match="at most 100 bytes"):
            account.take(41)
        account.take(40)
        account.keep(30)
    assert budget.held_bytes == 30


def test_limits_of_the_api_are_those_of_the_pipeline() -> None:
    schema = msgspec.json.schema(NewRequest)["$defs"]["NewRequest"]["properties"]
    assert schema["mask_grow"]["maximum"] == MAX_GROW_PX
    assert np.random.default_rng(schema["seed"]["maximum"]) is not None


def _raw(served: Served, *pieces: bytes) -> bytes:
    """Everything that the server says to these bytes until it closes; after each piece but the last an answer is awaited."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        one.connect(served.address)
        said = b""
        for number, piece in enumerate(pieces):
            one.sendall(piece)
            if number < len(pieces) - 1:
                said += one.recv(65536)
        while data := _received(one):
            said += data
            if b"\r\n\r\n" in said and b"connection: close" not in said.lower() and len(pieces) == 1:
                break
    return said


def _received(one: socket.socket) -> bytes:
    try:
        return one.recv(65536)
    except ConnectionResetError:  # it did not read all of what was sent
        return b""
