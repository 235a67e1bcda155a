"""A call that the machine has too little for is answered with one line, and the next one is served."""

from __future__ import annotations

import errno

import pytest

from quad.serve.operations import stream
from tests.serve.conftest import Serve
from tests.serve.fake import an_output


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")])
def test_a_picture_that_cannot_be_sent_now_is_no_fault(serve: Serve, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def lacking(*_: object) -> bytes:
        raise error

    served = serve()
    where = f"/v1/requests/{served.ask()}/image?wait=30"
    served.tickets[0].end("done", an_output())
    with monkeypatch.context() as patch:
        patch.setattr(stream, "to_png", lacking)
        status, body = served.call("GET", where)
    assert (status, body["kind"]) == (503, "BackendError")
    assert "found too little" in body["error"]
    assert served.call("GET", where)[0] == 200


def test_a_request_that_lacks_memory_says_so_and_holds_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise MemoryError("Unable to allocate 128. MiB for an array")

    served = serve(real=True)
    with monkeypatch.context() as patch:
        patch.setattr(type(served.service.pipe), "prepare", lacking)
        key = served.ask(prompt="x")
        status, body = served.call("GET", f"/v1/requests/{key}/image?wait=30")
    assert (status, body["kind"]) == (409, "BackendError")
    assert body["error"].startswith("picture: expected enough memory, found too little")
    error = next(iter(served.service.registry)).error
    assert error is not None
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
    served.ask(prompt="x")
