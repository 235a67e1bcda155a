"""Servers for tests: on a thread with a scheduler in the test's hand or the real one, or as a process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
import pytest
import uvicorn

from quad import QuadPipeline
from quad.runtime.queue.scheduler import Scheduler, SchedulerOptions
from quad.serve import QuadClient
from quad.serve.guard import Credentials
from quad.serve.http_client import HttpClient
from quad.serve.limits import Limits
from quad.serve.server import make_server
from quad.serve.service import Service
from tests.runtime.conftest import bundle_copy, forge, ink, mask, picture, rewrite, tiny_bundle  # noqa: F401
from tests.serve.fake import FakeScheduler


class Served:
    """A server on a thread of this process."""

    def __init__(self, service: Service, server: uvicorn.Server, address: str, token: str | None = None) -> None:
        self.service, self.address, self.token = service, address, token
        self._server = server
        self.thread = Thread(target=server.run)
        self.http = HttpClient(address, token, timeout_s=30)

    @property
    def tickets(self) -> list[Any]:
        found: list[Any] = self.service.scheduler.tickets  # type: ignore[attr-defined]
        return found

    def stop(self) -> None:
        """As SIGTERM does to a process."""
        self._server.should_exit = True

    def client(self, **options: Any) -> QuadClient:
        return QuadClient(self.address, self.token, timeout_s=30, **options)

    def ask(self, **wanted: Any) -> str:
        """The id of a new request."""
        status, body = self.call("POST", "/v1/requests", wanted)
        assert status == 202, body
        return str(body["id"])

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json", **headers: str) -> tuple[int, Any]:
        """Status, and the answer as it comes: JSON read, other bodies as bytes; `body` is bytes, or what is sent as JSON."""
        connection = self.http._connection()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        with suppress(BrokenPipeError, ConnectionResetError):  # refused by its head, before the body was sent: the answer waits to be read
            connection.request(method, path, data, {"Content-Type": kind, **token, **given})
        response: HTTPResponse = connection.getresponse()
        read = response.read()
        connection.close()
        is_json = response.headers.get("Content-Type") == "application/json"
        return response.status, json.loads(read) if is_json and read else read


Serve = Callable[..., Served]


class _Hasty:
    """asyncio for uvicorn, which looks every 0.1 s whether it shall stop and then waits 0.1 s: with hundreds of servers, a minute."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


@pytest.fixture(scope="session", autouse=True)
def hasty_servers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.server.asyncio", _Hasty())
        yield


def same(client: QuadClient, pipe: QuadPipeline, *words: str, **wanted: Any) -> None:
    theirs, ours = client(*words, **wanted), pipe(*words, **wanted)
    np.testing.assert_array_equal(np.asarray(theirs.images[0]), np.asarray(ours.images[0]))
    assert theirs.images[0].mode == ours.images[0].mode
    assert (theirs.notes, theirs.task, theirs.adapters, theirs.seed) == (ours.notes, ours.task, ours.adapters, ours.seed)
    assert theirs.timings_ms.keys() == ours.timings_ms.keys()


@pytest.fixture
def serve(tiny_bundle: Path) -> Iterator[Serve]:  # noqa: F811
    """`serve(limits=..., real=False, token=None, **service)`: a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_served(tiny_bundle, **options))


@contextmanager
def _served(bundle: Path, limits: Limits | None = None, real: bool = False, token: str | None = None, **service: Any) -> Iterator[Served]:
    pipe = QuadPipeline.from_pretrained(bundle, threads=1)
    scheduler: Any = Scheduler(pipe, SchedulerOptions()) if real else FakeScheduler(pipe)
    made = Service(pipe=pipe, scheduler=scheduler, limits=limits or Limits(), **service)
    with TemporaryDirectory(prefix="q") as folder, _listener(Path(folder) / "s", token) as listener:
        name = listener.getsockname()
        address = name if token is None else f"http://127.0.0.1:{name[1]}"
        server = make_server(made, None if token is None else Credentials(name[1], token))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            served = Served(made, server, address, token)
            served.thread = thread
            yield served
        finally:
            server.should_exit = True
            thread.join()
            scheduler.close()


def _listener(path: Path, token: str | None) -> socket.socket:
    listener = socket.socket(socket.AF_INET if token else socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0) if token else str(path))
    listener.listen()
    return listener
