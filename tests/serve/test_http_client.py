"""The client's side of the wire: what goes wrong there is one line of quad's own errors, and what an app raises stays the app's."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quad import QuadPipeline
from quad.core.errors import BackendError, BusyError, InputError, QuadError, UsageError
from quad.serve import QuadClient
from quad.serve.http_client import HttpClient
from quad.serve.limits import Limits
from quad.serve.pictures import picture_file
from tests.serve.conftest import Serve, same

QUEUED = b'{"id":"a","state":"queued","steps_done":0,"steps_total":null}'
POSTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(QUEUED) + QUEUED


@pytest.fixture
def answering() -> Iterator[Any]:
    """`answering(bytes, ...)`: a client of a stranger that says just these, one a connection."""
    with ExitStack() as stack:

        def start(*answers: bytes) -> QuadClient:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def run() -> None:
                for said in answers:
                    one, _ = listener.accept()
                    one.recv(65536)
                    one.sendall(said)
                    one.close()

            thread = Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            return QuadClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=30)

        yield start


@pytest.mark.parametrize("address", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "http://[::1"])
def test_an_address_that_is_none_is_wrong_usage(address: str) -> None:
    with pytest.raises(UsageError, match=r"address: expected a socket's path or http://127.0.0.1:PORT"):
        QuadClient(address).health  # noqa: B018


@pytest.mark.parametrize("token", ["quad-1\nquad-2", "quad-\u00fc"])
def test_a_token_that_cannot_be_one_is_wrong_usage_and_not_shown(token: str) -> None:
    with pytest.raises(UsageError, match="token file") as told:
        QuadClient("http://127.0.0.1:1", token).health  # noqa: B018
    assert "quad-" not in str(told.value)


def test_another_server_at_the_address_is_one_line(answering: Any) -> None:
    with pytest.raises(BackendError, match="expected a quad server's answer, found something else"):
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").health  # noqa: B018


@pytest.mark.parametrize("promised", [0, 100])
def test_a_stream_that_ends_within_an_event_is_one_line(answering: Any, promised: int) -> None:
    part = b'event: step\ndata: {"index":0,"tot'
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(part) + promised) + part + b"\r\n"
    with pytest.raises(BackendError):
        answering(POSTED, stream)("x")


@pytest.mark.parametrize("kind", [FileNotFoundError, TimeoutError, BrokenPipeError])
def test_what_a_callback_raises_is_the_callers_own(serve: Serve, kind: type[OSError]) -> None:
    def stop(*_told: object) -> None:
        raise kind("mine")

    with pytest.raises(kind, match="mine"):
        serve(real=True).client()("x", callback_on_step_end=stop)


def test_a_picture_that_is_there_is_given_though_the_server_has_gone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = HttpClient.fetch

    def fetch(self: HttpClient, method: str, path: str, *rest: Any) -> bytes:
        if method == "DELETE":
            raise BackendError("server: expected a running server, found none; start it")
        return whole(self, method, path, *rest)

    client = serve(real=True).client()
    monkeypatch.setattr(HttpClient, "fetch", fetch)
    assert client("x").images


def test_who_gets_no_stream_leaves_no_work_behind(serve: Serve) -> None:
    served = serve(limits=Limits(max_streams=1))
    with served.http.answer("GET", f"/v1/requests/{served.ask()}/events"):
        with pytest.raises(BusyError, match="fewer than 1 open"):
            served.client()("x")
        served.tickets[1].wait_until("cancelled")


@pytest.mark.parametrize(
    "wanted",
    [{"guidance_scale": float("nan")}, {"guidance_scale": np.float32("inf")}, {"strength": float("nan"), "task": "transform"}],
)
def test_a_number_that_json_does_not_know_is_refused_and_not_left_out(serve: Serve, wanted: dict[str, Any]) -> None:
    served = serve()
    with pytest.raises(UsageError, match="expected a finite number"):
        served.client()("x", **wanted)
    with pytest.raises(UsageError, match="expected texts and numbers, found object"):
        served.client()("x", seed=object())
    assert not served.tickets


def test_numbers_may_be_numpys(serve: Serve, tiny_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    same(serve(real=True).client(), pipe, "x", seed=np.int64(3), num_inference_steps=np.int32(2), guidance_scale=np.float32(2))


def test_a_photo_goes_as_the_file_that_it_is(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).normal(128, 40, (300, 400, 3)).clip(0, 255).astype(np.uint8)
    for suffix, as_it_is in (("jpg", True), ("webp", True), ("png", True), ("bmp", False)):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(grain).save(path)
        assert (picture_file(path, "image") == path.read_bytes()) == as_it_is


def test_a_pack_is_sent_piece_by_piece(serve: Serve, tmp_path: Path) -> None:
    uploads, pack = tmp_path / "uploads", tmp_path / "large.qpack"
    uploads.mkdir()
    with pack.open("wb") as stream:
        stream.truncate(32 * 2**20)
    client = serve(uploads=uploads, limits=Limits(max_upload_bytes=2**20)).client()
    tracemalloc.start()
    try:
        with pytest.raises(QuadError):
            client.load_lora_weights(pack, "large")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_pack_that_is_not_there_is_told_as_the_pipeline_tells_it(serve: Serve, tmp_path: Path, tiny_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    for load in (serve(uploads=tmp_path).client().load_lora_weights, pipe.load_lora_weights):
        with pytest.raises(InputError, match="expected a pack file"):
            load(tmp_path / "none.qpack", "ink")
