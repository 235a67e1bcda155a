"""The page's files need no token and hold no secret; all else does; every answer is held to its own origin."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from quad.serve.studio.files import DevicePlace, PageFile, page_files
from quad.serve.studio.headers import HEADERS
from tests.serve.conftest import Serve, Served

TOKEN = "quad-0123456789"


@pytest.fixture
def studio(serve: Serve) -> Served:
    served = serve(token=TOKEN, page=page_files())
    served.token = None
    return served


def _headers(served: Served, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = served.http._connection()
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.headers.items()}, body


def test_the_page_is_read_without_a_token_and_nothing_else_is(studio: Served) -> None:
    for path in page_files():
        assert _headers(studio, path)[0] == 200, path
        assert _headers(studio, path, "HEAD")[::2] == (200, b"")
        assert _headers(studio, path, "POST")[0] == 401
    for path in (
        "/health",
        "/v1/tasks",
        "/v1/adapters",
        "/bundle/bundle.json",
        "/index.html",
        "//",
        "/main.js/",
        "/../main.js",
        "/%6dain.jsx",
    ):
        assert _headers(studio, path)[0] == 401, path


def test_a_large_file_is_not_given_away_before_it_is_read(serve: Serve) -> None:
    large = PageFile(content=bytes(range(256)) * 2**15, media_type="application/wasm")  # 8 MiB
    served = serve(token=TOKEN, page={**page_files(), "/device/large.wasm": large})
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])), 30) as stranger:
        stranger.sendall(b"GET /device/large.wasm HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert served.call("GET", "/health")[0] == 200  # others are answered meanwhile
        data = b""
        while len(data) < len(large.content):
            data += stranger.recv(2**20)
    assert data.partition(b"\r\n\r\n")[2].ljust(len(large.content), b"?")[: 2**20] == large.content[: 2**20]


def test_under_another_hosts_name_there_is_no_page(studio: Served) -> None:
    assert _headers(studio, "/", Host="evil.example")[0] == 421


def test_every_answer_is_held_to_its_own_origin(studio: Served) -> None:
    for path in ("/", "/main.js", "/v1/tasks", "/nothing"):
        headers = _headers(studio, path)[1]
        assert {name: headers[name.lower()] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    assert not re.search(r"https?:|\*|data:", policy)


def test_a_server_without_a_page_has_none(serve: Serve) -> None:
    served = serve(token=TOKEN)
    for path in page_files():
        assert served.call("GET", path)[0] == 404, path
    assert "content-security-policy" not in _headers(served, "/v1/tasks", Authorization=f"Bearer {TOKEN}")[1]


def test_a_file_that_has_not_changed_is_not_sent_again(studio: Served) -> None:
    etag = _headers(studio, "/main.js")[1]["etag"]
    assert _headers(studio, "/main.js", If_None_Match=etag)[::2] == (304, b"")
    assert _headers(studio, "/main.js", If_None_Match='"other"')[0] == 200


def test_files_of_the_bundle_come_whole_and_in_ranges_to_whoever_has_the_token(studio: Served, tiny_bundle: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for name in ("bundle.json", "slots.json", "unet/model.onnx"):
        content = (tiny_bundle / name).read_bytes()
        assert _headers(studio, f"/bundle/{name}", **bearer)[::2] == (200, content)
        status, headers, part = _headers(studio, f"/bundle/{name}", Range="bytes=5-9", **bearer)
        assert (status, part, headers["content-range"]) == (206, content[5:10], f"bytes 5-9/{len(content)}")
    for name in ("../bundle.json", "%2e%2e/bundle.json", "/etc/passwd", "adapters", "", "nothing.json"):
        assert _headers(studio, f"/bundle/{name}", **bearer)[0] == 404, name


def test_studio_json_says_where_a_runtime_of_the_page_lies(tmp_path: Path) -> None:
    assert json.loads(page_files(device=tmp_path / "none")["/studio.json"].content) == {"server": True, "device": None}
    (tmp_path / "worker.js").write_text("//", "utf-8")
    (tmp_path / "notes.txt").write_text("//", "utf-8")
    files = page_files(device=tmp_path)
    place = DevicePlace()
    assert json.loads(files["/studio.json"].content)["device"] == {"runtime": place.runtime, "bundle": place.bundle}
    assert [path for path in files if path.startswith("/device/")] == ["/device/worker.js"]


def test_the_page_names_no_other_origin(tmp_path: Path) -> None:
    for path, file in page_files(device=tmp_path / "none").items():
        addresses = set(re.findall(rb"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", file.content))
        assert addresses <= {b"http://www.w3.org"}, path
