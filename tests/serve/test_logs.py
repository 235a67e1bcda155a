"""The log of a server says what was decided, and nothing of what its clients say or know."""

from __future__ import annotations

import json
import logging

import pytest

from quad.core.errors import QuadError
from quad.serve.limits import Limits
from tests.serve.conftest import Serve
from tests.serve.fake import an_output

PROMPT, NEGATIVE, CLIENT = "a-prompt-to-recognise", "a-negative-prompt-to-recognise", "a-client-to-recognise"
TOKEN = "quad-token-to-recognise"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)  # of every library too
    return caplog


def test_nothing_of_a_prompt_or_a_token_is_logged_while_a_picture_is_made(serve: Serve, log: pytest.LogCaptureFixture) -> None:
    served = serve(token=TOKEN, real=True)
    client = served.client(name=CLIENT)
    client(PROMPT, negative_prompt=NEGATIVE, guidance_scale=2.0)
    with pytest.raises(QuadError):
        client(PROMPT, task=PROMPT)
    assert served.call("GET", f"/v1/requests/{PROMPT}")[0] == 404
    served.stop()
    assert "request 0: queued" in log.text
    assert "request 0: done after" in log.text
    assert "POST /v1/requests: answered 400, UsageError" in log.text
    assert "GET /v1/requests/{id}: answered 404, InputError" in log.text
    for secret in (PROMPT, NEGATIVE, CLIENT, TOKEN):
        assert secret not in log.text


def test_a_wrong_token_is_refused_in_the_log_without_either_token(serve: Serve, log: pytest.LogCaptureFixture) -> None:
    served = serve(token=TOKEN)
    assert served.call("GET", "/health", Authorization="Bearer another-token")[0] == 401
    assert "a call over TCP answered 401: no token of this server" in log.text
    assert TOKEN not in log.text
    assert "another-token" not in log.text


def test_the_id_of_a_request_is_not_logged_its_number_is(serve: Serve, log: pytest.LogCaptureFixture) -> None:
    served = serve(limits=Limits(max_finished=1))
    keys = [served.ask(prompt=PROMPT) for _ in range(2)]
    served.tickets[0].end("done", an_output())
    served.call("DELETE", f"/v1/requests/{keys[1]}")
    served.tickets[1].wait_until("cancelled")
    assert served.call("GET", f"/v1/requests/{keys[1]}")[0] == 404
    assert "request 1: cancelled by the server" in log.text
    for secret in (*keys, PROMPT):
        assert secret not in log.text


def test_a_body_that_is_wrong_is_not_quoted(serve: Serve, log: pytest.LogCaptureFixture) -> None:
    served = serve()
    for body in ({"prompt": [PROMPT]}, {PROMPT: 1}, {"prompt": PROMPT * 1000}):
        assert served.call("POST", "/v1/requests", json.dumps(body).encode())[0] == 400
    assert log.text.count("POST /v1/requests: answered 400, UsageError") == 3
    assert PROMPT not in log.text
