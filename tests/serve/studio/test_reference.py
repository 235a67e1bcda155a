"""Full precision's pictures by another process: asked for in turn, ended when nobody waits, and its errors are told."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from quad.serve.studio.reference_process import ReferenceProcess
from tests.serve.conftest import Serve, Served
from tests.serve.stand_in import png

# Answers with the picture that it was given; by the prompt it refuses, dies or takes its time.
STAND_IN = """
import base64, json, os, struct, time
def read(n):
    data = b""
    while len(data) < n and (piece := os.read(0, n - len(data))): data += piece
    return data
while head := read(4):
    body = json.loads(read(*struct.unpack(">I", head)))
    if body["prompt"] == "die": os._exit(3)
    if body["prompt"] == "wait": time.sleep(600)
    if body["prompt"] == "no": answer = {"error": {"error": "weight: expected 1", "kind": "UnsupportedError"}}
    else:
        used = {"sampler": "ddim:2", "guidance": 1.0, "adapters": {}, "seed": os.getpid()}
        answer = {"picture": {"image": body["image"], "seconds": 0.5, **used}}
    data = json.dumps(answer).encode()
    os.write(0, struct.pack(">I", len(data)) + data)
"""


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(real=True, reference=ReferenceProcess([sys.executable, "-c", STAND_IN]))


def test_one_process_makes_all_of_them(served: Served) -> None:
    assert served.call("GET", "/v1/bundle")[1]["reference"]
    bodies = [served.call("POST", "/v1/reference", {"prompt": "car", "image": png(16)}) for _ in range(2)]
    assert [status for status, _ in bodies] == [200, 200]
    assert bodies[0][1]["seed"] == bodies[1][1]["seed"]
    assert Image.open(io.BytesIO(base64.b64decode(bodies[0][1]["image"]))).size == (16, 16)


def test_what_it_says_is_told_and_what_ends_it_hurts_nobody_else(served: Served) -> None:
    for prompt, status, kind in (("no", 422, "UnsupportedError"), ("die", 503, "BackendError")):
        answered, body = served.call("POST", "/v1/reference", {"prompt": prompt, "image": png(16)})
        assert (answered, body["kind"]) == (status, kind)
        assert served.call("POST", "/v1/reference", {"prompt": "car", "image": png(16)})[0] == 200


def test_a_picture_that_is_none_never_reaches_it(served: Served) -> None:
    body = {"prompt": "die", "image": base64.b64encode(b"nothing").decode()}
    assert served.call("POST", "/v1/reference", body)[0] == 400
    assert served.service.reference is not None
    assert served.service.reference._process is None


def test_who_leaves_ends_it(served: Served) -> None:
    process = served.service.reference
    assert process is not None
    connection = served.http._connection()
    body = json.dumps({"prompt": "wait", "image": png(16)})
    connection.request("POST", "/v1/reference", body, {"Content-Type": "application/json"})
    until = time.monotonic() + 30
    while process._process is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process._process is not None
    running = process._process
    connection.close()
    assert running.wait(30) < 0


def test_a_server_without_one_says_how_to_get_it(serve: Serve, tmp_path: Path) -> None:
    status, body = serve(real=True).call("POST", "/v1/reference", {"prompt": "car"})
    assert (status, "--against" in body["error"]) == (409, True)
