"""Strangers on a server's port: connections without its token, which ask, stay silent or send bodies without end, and come again."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

from quad.core.errors import QuadError
from tests.serve.process import ServerProcess

STRANGERS, THREADS = 256, 4
_PATIENCE_S = 10.0
SENT = (
    b"",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST /v1/requests HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
)


class Stranger:
    """One connection that is never given up."""

    def __init__(self, number: int, port: int) -> None:
        self._sent, self._port, self.connections = SENT[number % len(SENT)], port, 0
        self._socket: socket.socket | None = None

    def insist(self) -> None:
        """Send some more; where the connection was closed, open another one."""
        with suppress(OSError):
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), _PATIENCE_S)
                self._socket.setblocking(False)
                self.connections += 1
                self._socket.sendall(self._sent)
            elif self._sent:
                self._socket.sendall(self._sent[-10:])
            with suppress(BlockingIOError):
                while self._socket.recv(65536):
                    pass
                self.leave()
            return
        self.leave()

    def leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def strangers(bundle: Path, folder: Path, seconds: float, calls: int) -> dict[str, Any]:
    """So many calls of the owner, over so many seconds, beside them; how many were answered."""
    over, answers = Event(), Counter[str]()
    with ServerProcess(bundle, "--port", "0", "--token-file", str(folder / "token")) as server:
        crowd = [Stranger(number, int(server.told["address"].rpartition(":")[2])) for number in range(STRANGERS)]
        threads = [Thread(target=_insist, args=(crowd[number::THREADS], over)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        client = server.client(timeout_s=_PATIENCE_S)
        for _ in range(calls):
            sleep(seconds / calls)
            try:
                answers[client.health.status] += 1
            except QuadError as error:
                answers[type(error).__name__] += 1
        over.set()
        for thread in threads:
            thread.join()
        resident = server.resident_bytes()
        code, said = server.stop()
    connections = sum(stranger.connections for stranger in crowd)
    return {
        "answered": answers["ok"],
        "answers": dict(answers),
        "connections": connections,
        "resident_bytes": resident,
        "exit_code": code,
        "stderr": said,
    }


def _insist(crowd: list[Stranger], over: Event) -> None:
    while not over.wait(0.1):
        for stranger in crowd:
            stranger.insist()
    for stranger in crowd:
        stranger.leave()
