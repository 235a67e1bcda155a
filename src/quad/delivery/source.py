"""Where a repository is read from: a directory, or HTTP. Every answer is bounded in bytes and in time, and none is believed."""

from __future__ import annotations

import http.client
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError

from quad.core.errors import BackendError, UsageError, mismatch
from quad.core.storage.files import inside
from quad.core.storage.reading import file_status, is_directory
from quad.delivery.address import SCHEMES, origin_of, redirect_origins, require_plain, without_secrets
from quad.delivery.timeouts import Deadline, Timeouts, metered

CHUNK_BYTES = 1 << 16
_MOST_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_NO_PART = (206, 416)  # another part than was asked for, or none


@dataclass(frozen=True)
class Answer:
    """Bytes of a file from `start` on."""

    start: int
    chunks: Iterator[bytes]


class Source(Protocol):
    """A repository that can be read."""

    @property
    def name(self) -> str:
        """Its address, for messages and to open it again."""

    @property
    def redirects(self) -> tuple[str, ...]:
        """Origins beside its own that it may redirect to, as they were named."""

    def open(self, path: str, start: int, most: int) -> Answer:
        """A file below the repository.

        Args:
            path: of checked parts.
            start: the byte to begin at; the answer may begin at 0 all the same.
            most: bytes that the reader will take at most.

        Raises:
            DownloadHTTPError: no such file. SlowRetrievalError: too slow. DownloadError: not to be reached.
        """


def open_source(url: str, timeouts: Timeouts | None = None, redirects: Sequence[str] = ()) -> Source:
    """A source by its URL, or by the path of a directory.

    Args:
        redirects: origins beside its own that it may redirect to.

    Raises:
        UsageError: neither, or an address with a password. BackendError: the directory cannot be looked at.
    """
    shown = repr(without_secrets(require_plain("--url", url)))
    wrong = UsageError(mismatch("--url", "http://, https://, file:// or a directory", shown, "check the address"))
    try:
        parts = urlsplit(url)
        over_http = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
    except ValueError as error:  # a port or an address that is none
        raise wrong from error
    if over_http:
        redirect_origins(url, redirects)
        return HttpSource(url, timeouts or Timeouts(), tuple(redirects))
    folder = Path(unquote(parts.path)) if parts.scheme == "file" else Path(url)
    if ("://" in url and parts.scheme != "file") or not is_directory(folder):
        raise wrong
    return DirectorySource(folder.absolute())


@final
@dataclass(frozen=True)
class DirectorySource:
    """A repository on a disk that this machine has."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def redirects(self) -> tuple[str, ...]:
        return ()

    def open(self, path: str, start: int, most: int) -> Answer:
        file = inside(self.folder, path)
        try:
            status = file_status(file)
        except BackendError as error:
            raise DownloadError(str(error)) from error
        if status is None or not stat.S_ISREG(status.st_mode):
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
    """A repository behind HTTP or HTTPS; proxies of the environment are not asked.

    Args:
        redirects: origins beside its own that it may redirect to.
    """

    url: str
    timeouts: Timeouts
    redirects: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.url.rstrip("/")

    def open(self, path: str, start: int, most: int) -> Answer:
        address = f"{self.name}/{quote(path)}"
        try:
            try:
                return self._follow(address, start, most)
            except DownloadHTTPError as error:
                if not start or error.status_code not in _NO_PART:
                    raise
            return self._follow(address, 0, start + most)
        except ValueError as error:  # of a redirect, or of a header, that is beyond sense
            raise DownloadError(f"an answer that makes no sense: {error}") from error

    def _follow(self, address: str, start: int, most: int) -> Answer:
        began, origins = urlsplit(address).scheme, redirect_origins(self.url, self.redirects)
        for _ in range(_MOST_REDIRECTS):
            parts = urlsplit(address)
            if parts.scheme not in SCHEMES or (began == "https" and parts.scheme != began):
                raise DownloadError(f"a redirect from {began} to {parts.scheme}")
            if origin_of(parts) not in origins:
                raise DownloadError(f"a redirect to {origin_of(parts)}, an origin that neither --url nor --redirect-to names")
            answer = self._ask(parts, start, most)
            if isinstance(answer, Answer):
                return answer
            address = urljoin(address, answer)
        raise DownloadError(f"more than {_MOST_REDIRECTS} redirects")

    def _ask(self, parts: SplitResult, start: int, most: int) -> Answer | str:
        """The file's bytes, or where to ask instead."""
        connection = _reached(parts, self.timeouts.silence_s)
        headers = {"Accept-Encoding": "identity", "Connection": "close"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with Deadline(self.timeouts.window_s, connection.sock) as deadline:
                connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
                response = connection.getresponse()
            if response.status in _MOVED and response.getheader("Location"):
                connection.close()
                return str(response.getheader("Location"))
            begins = _begins(response, start)
        except BaseException:
            connection.close()
            raise
        return Answer(begins, metered(self._chunks(connection, response, deadline.line, start + most - begins), self.timeouts))

    def _chunks(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, line: socket.socket | None, most: int
    ) -> Iterator[bytes]:
        try:
            with response, Deadline(self.timeouts.window_s + most / self.timeouts.lowest_rate, line):
                while chunk := response.read1(CHUNK_BYTES):
                    yield chunk
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
        finally:
            connection.close()


def _begins(response: http.client.HTTPResponse, start: int) -> int:
    """The byte that an answer begins with: the one asked for, or the first where the server knows no ranges."""
    part = re.match(r"bytes (\d+)-", response.getheader("Content-Range") or "") if response.status == 206 else None
    if response.status != 200 and (part is None or int(part[1]) != start):
        raise DownloadHTTPError(f"HTTP status {response.status}", response.status)
    return start if part is not None else 0


def _reached(parts: SplitResult, silence_s: float) -> http.client.HTTPConnection:
    """A line to a server, nothing said yet. One that is not there is no slow one."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port or kind.default_port, timeout=silence_s)
        connection.connect()
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"no connection ({error})") from error
    return connection
