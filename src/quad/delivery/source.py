"""Where a repository is read from: a directory, or HTTP. Every answer is bounded in bytes and in time, and none is believed."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError

from quad.core.errors import UsageError, mismatch
from quad.core.files import inside

CHUNK_BYTES = 1 << 16
_MOST_REDIRECTS = 5
_SCHEMES = ("http", "https")
_MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Patience:
    """How slow a server may be.

    Args:
        silence_s: seconds without a byte.
        window_s: seconds over which the rate is measured, and in which an answer must begin.
        lowest_rate: bytes a second, in each such window.
    """

    silence_s: float = 15.0
    window_s: float = 20.0
    lowest_rate: int = 1024


@dataclass(frozen=True)
class Answer:
    """Bytes of a file from `start` on."""

    start: int
    chunks: Iterator[bytes]


class Source(Protocol):
    """A repository that can be read."""

    @property
    def name(self) -> str:
        """What to call it, for messages and to open it again."""

    def open(self, path: str, start: int, most: int) -> Answer:
        """A file below the repository.

        Args:
            path: of checked parts.
            start: the byte to begin at; the answer may begin at 0 all the same.
            most: bytes that the reader will take at most.

        Raises:
            DownloadHTTPError: no such file. SlowRetrievalError: too slow. DownloadError: not to be reached.
        """


def open_source(url: str, patience: Patience | None = None) -> Source:
    """A source by its URL, or by the path of a directory.

    Raises:
        UsageError: neither.
    """
    parts = urlsplit(url)
    if parts.scheme in _SCHEMES and parts.hostname:
        return HttpSource(url, patience or Patience())
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(url)
    if ("://" in url and parts.scheme != "file") or not folder.is_dir():
        raise UsageError(mismatch("--url", "http://, https://, file:// or a directory", repr(url), "check the address"))
    return DirectorySource(folder.absolute())


@final
@dataclass(frozen=True)
class DirectorySource:
    """A repository on a disk that this machine has."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    def open(self, path: str, start: int, most: int) -> Answer:
        file = inside(self.folder, path)
        try:
            there = file.is_file()
        except OSError as error:
            raise DownloadError(f"cannot read {file.name}: {error.strerror}") from error
        if not there:
            raise DownloadHTTPError(f"no file {path}", 404)
        return Answer(start, self._chunks(file, start))

    @staticmethod
    def _chunks(file: Path, start: int) -> Iterator[bytes]:
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise DownloadError(f"cannot read {file.name}: {error.strerror}") from error


@final
@dataclass(frozen=True)
class HttpSource:
    """A repository behind HTTP or HTTPS; proxies of the environment are not asked."""

    url: str
    patience: Patience

    @property
    def name(self) -> str:
        return self.url.rstrip("/")

    def open(self, path: str, start: int, most: int) -> Answer:
        try:
            return self._follow(f"{self.name}/{quote(path)}", start, most)
        except ValueError as error:  # of a redirect, or of a header, that is beyond sense
            raise DownloadError(f"an answer that makes no sense: {error}") from error

    def _follow(self, address: str, start: int, most: int) -> Answer:
        for _ in range(_MOST_REDIRECTS):
            parts = urlsplit(address)
            if parts.scheme not in _SCHEMES or (self.url.startswith("https:") and parts.scheme != "https"):
                raise DownloadError(f"a redirect from {urlsplit(self.url).scheme} to {parts.scheme}")
            answer = self._ask(parts, start, most)
            if isinstance(answer, Answer):
                return answer
            address = urljoin(address, answer)
        raise DownloadError(f"more than {_MOST_REDIRECTS} redirects")

    def _ask(self, parts: SplitResult, start: int, most: int) -> Answer | str:
        """The file's bytes, or where to ask instead."""
        connection = _connection(parts, self.patience.silence_s)
        headers = {"Accept-Encoding": "identity", "Connection": "close"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with Watch(self.patience.window_s) as watch:
                connection.connect()
                watch.line = connection.sock
                connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
                response = connection.getresponse()
            if response.status in _MOVED and response.getheader("Location"):
                connection.close()
                return str(response.getheader("Location"))
            begins = _begins(response, start)
        except BaseException:
            connection.close()
            raise
        return Answer(begins, metered(self._chunks(connection, response, watch.line, most), self.patience))

    def _chunks(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, line: socket.socket, most: int
    ) -> Iterator[bytes]:
        try:
            with response, Watch(self.patience.window_s + most / self.patience.lowest_rate, line):
                while chunk := response.read1(CHUNK_BYTES):
                    yield chunk
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
        finally:
            connection.close()


def _begins(response: http.client.HTTPResponse, start: int) -> int:
    """The byte that an answer begins with: the one asked for, or the first where the server knows no ranges."""
    found = re.match(r"bytes (\d+)-", response.getheader("Content-Range") or "") if response.status == 206 else None
    if response.status != 200 and (found is None or int(found[1]) != start):
        raise DownloadHTTPError(f"HTTP status {response.status}", response.status)
    return start if found is not None else 0


def _connection(parts: SplitResult, silence_s: float) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=silence_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=silence_s)


@final
class Watch:
    """Ends a conversation at a moment, however many bytes trickle in: a socket's own timeout begins anew with each of them.

    While the block runs it also says in tuf's words what goes wrong there.
    """

    def __init__(self, seconds: float, line: socket.socket | None = None) -> None:
        self.line, self._ended = line, False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Watch:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        broken = isinstance(error, OSError | http.client.HTTPException)
        if isinstance(error, TimeoutError) or (self._ended and (broken or error is None)):  # an end that we made reads like the server's
            raise SlowRetrievalError("no answer in time") from error
        if broken:
            raise DownloadError(str(error) or type(error).__name__) from error

    def _end(self) -> None:
        self._ended = True
        if self.line is not None:
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)


def metered(chunks: Iterator[bytes], patience: Patience, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """The same chunks, as long as they come fast enough.

    Raises:
        SlowRetrievalError: a window brought less than it must.
    """
    since, taken = clock(), 0
    for chunk in chunks:
        taken += len(chunk)
        passed = clock() - since
        if passed >= patience.window_s:
            if taken < patience.lowest_rate * passed:
                raise SlowRetrievalError(f"{taken} bytes in {passed:.0f} s")
            since, taken = clock(), 0
        yield chunk
