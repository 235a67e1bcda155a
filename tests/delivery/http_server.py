"""A real HTTP server on loopback that serves a directory, and misbehaves when told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ELSEWHERE = "http://127.0.0.2:9/x.qpack"
REDIRECTS = {
    "elsewhere": ELSEWHERE,
    "elsewhere-by-name": "//localhost:9/x.qpack",
    "to-a-file": "file:///etc/passwd",
    "to-noise": "http://[x/\xe9",
    "to-no-port": "http://127.0.0.1:x/",
    "for-ever": "/x.qpack",
}


@dataclass
class Served:
    """What the server serves and how; `asked` holds each path with its Range header.

    Args:
        mode: how packs are served, one of `REDIRECTS`, of those in the code, or `honest`; metadata is always served honestly.
        released: until it is set, a silent server says nothing more.
    """

    folder: Path
    mode: str = "honest"
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def _quiet(*_: object) -> None:
    """Say nothing of what is asked."""


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            asked = self.headers.get("Range")
            served.asked.append((self.path, asked))
            path = served.folder / self.path.lstrip("/").removeprefix("again/")
            mode = served.mode if self.path.endswith(".qpack") else "honest"
            if not path.is_file() and mode not in REDIRECTS:
                self.send_error(404)
                return
            data = path.read_bytes() if path.is_file() else b""
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode != "no-range" else 0
            self._answer(mode, data, start)

        def _answer(self, mode: str, data: bytes, start: int) -> None:
            if mode in REDIRECTS or (mode == "redirect" and not self.path.startswith("/again/")):
                self._head(302, {"Location": REDIRECTS.get(mode, f"/again{self.path}"), "Content-Length": "0"})
            elif mode == "broken" or (mode == "no-part" and start):
                self.send_error(416 if start else 500)
            elif mode == "silent-headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                self._trickle()
            elif mode == "chunked":
                self._head(200, {"Transfer-Encoding": "chunked"})
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
            else:
                says = {"Content-Length": str(len(data) - start)}
                if start:
                    says["Content-Range"] = f"bytes {start + (mode == 'wrong-range')}-{len(data) - 1}/{len(data)}"
                self._head(206 if start else 200, says)
                self._body(mode, data[start:])

        def _body(self, mode: str, data: bytes) -> None:
            half = len(data) // 2
            self.wfile.write(data[:half] if mode in ("cut", "silent") else data)
            self.wfile.flush()
            if mode == "silent":
                served.released.wait()

        def _trickle(self) -> None:
            """A byte now and then, so that no single read waits for long."""
            try:
                while not served.released.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            except OSError:
                pass

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        log_message = _quiet

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A server of a directory while the block runs."""
    served = Served(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
