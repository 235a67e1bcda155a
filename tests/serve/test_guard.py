"""Loopback TCP: no call without the token, none under another host's name, and nothing for pages of other origins."""

from __future__ import annotations

import socket

import pytest

from tests.serve.conftest import Serve

TOKEN = "quad-0123456789"


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"]
)
@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/v1/requests", "/v1/nothing"])
def test_without_the_token_there_is_nothing(serve: Serve, given: str | None, path: str) -> None:
    served = serve(token=TOKEN)
    served.token = None
    headers = {} if given is None else {"Authorization": given}
    status, body = served.call("GET", path, **headers)
    assert (status, body["kind"]) == (401, "InputError")
    assert TOKEN not in str(body)


def test_with_the_token_it_answers(serve: Serve) -> None:
    served = serve(token=TOKEN)
    assert served.call("GET", "/health")[0] == 200
    assert served.client().health.status == "ok"
    served.token = None
    assert served.call("GET", "/health", Authorization=f"bearer  {TOKEN} ")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:1", "127.0.0.1:99999", "", "localhost.", "0.0.0.0"])
def test_another_hosts_name_is_refused_even_with_the_token(serve: Serve, host: str) -> None:
    assert serve(token=TOKEN).call("GET", "/health", Host=host)[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_the_loopbacks_own_names_are_right_with_and_without_the_port(serve: Serve, host: str) -> None:
    served = serve(token=TOKEN)
    port = served.address.rpartition(":")[2]
    for name in (host, f"{host}:{port}"):
        assert served.call("GET", "/health", Host=name)[0] == 200


def test_two_hosts_are_none(serve: Serve) -> None:
    served = serve(token=TOKEN)
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2]))) as one:
        one.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert one.recv(100).startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


def test_a_page_of_another_origin_is_given_no_leave(serve: Serve) -> None:
    served = serve(token=TOKEN)
    connection = served.http._connection()
    connection.request("OPTIONS", "/v1/requests", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    response = connection.getresponse()
    assert response.status == 401
    assert not [name for name in response.headers if name.lower().startswith("access-control")]
    response.read()
    connection.close()


def test_on_a_socket_the_file_is_the_check(serve: Serve) -> None:
    served = serve()
    assert served.call("GET", "/health", Host="whatever")[0] == 200
    assert "found 'GET /v1/nothing'" in served.call("GET", "/v1/nothing", Host="[")[1]["error"]  # whose path is not to be told
