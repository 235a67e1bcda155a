"""Where a server is found, and what it leaves on the disk while it runs: socket or token, uploads, and the lock that says it lives.

    STEM.lock      empty, held by the running server; the system lets go of it when the process ends, however it ends
    STEM           the socket, mode 0600          (Unix socket)
    STEM.token     the token, mode 0600           (loopback TCP; where it was named, it has a lock of its own)
    STEM.uploads/  packs that clients sent

What a killed server left is removed by the next one: it takes the locks of the same stem and of all dead ones in the user's own directory.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import BackendError, InputError, UsageError, mismatch
from quad.core.storage.files import writing_to
from quad.core.storage.pack import PACK_SUFFIX
from quad.core.storage.parts import PART
from quad.serve.lock import LOCK, lock_file, locked

_LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TOKEN, UPLOADS = ".token", ".uploads"
SOCKET_NAME = "serve.sock"
_TOKEN_BYTES, _TOKEN_MARK = 32, "quad-"
_BACKLOG = 128
_LONGEST_ADDRESS = 103  # of a socket, on every system
_UPLOAD_BYTES = 8
_PACK = rf"[0-9a-f]{{{2 * _UPLOAD_BYTES}}}{re.escape(PACK_SUFFIX)}"
_UPLOAD = re.compile(rf"{_PACK}|\.{_PACK}\.[0-9a-f]{{16}}\.{PART}")  # one that is being written too


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A listening socket that this process holds, and the files beside it.

    Args:
        stem: see above.
        listener: a bound and listening socket.
        token: what TCP calls have to bring, None on a Unix socket.
        token_file: where it is written.
    """

    stem: Path
    listener: socket.socket
    token: str | None = None
    token_file: Path | None = None

    @property
    def uploads(self) -> Path:
        return self.stem.with_name(self.stem.name + UPLOADS)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])


def upload_name() -> str:
    """A new name for a pack that a client sends."""
    return f"{secrets.token_hex(_UPLOAD_BYTES)}{PACK_SUFFIX}"


def own_directory() -> Path:
    """The user's directory for sockets, made where it is not there, closed to everybody else.

    Raises:
        InputError: somebody else has put something there.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(runtime) / "quad" if runtime else Path(tempfile.gettempdir()) / f"quad-{os.getuid()}"
    with writing_to(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(mismatch(str(path), "a directory of your own, mode 0700", "another one", "remove it, or choose --socket"))
    return path


@contextmanager
def socket_endpoint(path: Path | None) -> Iterator[Endpoint]:
    """Listen on a Unix socket while the block runs; by default in the user's own directory.

    Raises:
        InputError: another server lives there, or something that is no server's. UsageError: the path is too long for one.
    """
    stem = own_directory() / SOCKET_NAME if path is None else path.absolute()
    if len(os.fsencode(stem)) > _LONGEST_ADDRESS:
        raise UsageError(
            mismatch("--socket", f"a path of at most {_LONGEST_ADDRESS} bytes", len(os.fsencode(stem)), "choose a shorter one")
        )
    with locked(stem):
        if path is None:
            _remove_dead_servers(stem.parent)
        _remove_files(stem)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # nobody else may connect, not for one moment
        try:
            with writing_to(stem):
                listener.bind(str(stem))
        finally:
            os.umask(before)
        try:
            listener.listen(_BACKLOG)
            yield Endpoint(stem=stem, listener=listener)
        finally:
            listener.close()
            _remove_files(stem)


@contextmanager
def port_endpoint(port: int, token_file: Path | None) -> Iterator[Endpoint]:
    """Listen on a port of the loopback while the block runs, with a token drawn for it.

    Args:
        port: 0 for any that is free.
        token_file: by default in the user's own directory, named by the port.

    Raises:
        BackendError: the port is taken. InputError: `token_file` is something else than a token, or that of a running server.
    """
    folder = own_directory()
    _remove_dead_servers(folder)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise BackendError(mismatch(f"port {port}", "a free port", error.strerror or str(error), "choose another --port")) from error
        stem = folder / f"tcp-{listener.getsockname()[1]}"
        file = stem.with_name(stem.name + TOKEN) if token_file is None else token_file.absolute()
        with locked(stem), nullcontext() if token_file is None else locked(file):
            _remove_with_token(stem)
            token = _write_token(file)
            try:
                listener.listen(_BACKLOG)
                yield Endpoint(stem=stem, listener=listener, token=token, token_file=file)
            finally:
                file.unlink(missing_ok=True)
                _remove_with_token(stem)


def _write_token(file: Path) -> str:
    if file.is_symlink() or (file.exists() and not (file.is_file() and file.read_bytes().startswith(_TOKEN_MARK.encode()))):
        raise InputError(mismatch(str(file), "a new file, or an older token", "something else", "choose another --token-file"))
    token, part = _TOKEN_MARK + secrets.token_urlsafe(_TOKEN_BYTES), _part_of(file)
    with writing_to(file):
        part.unlink(missing_ok=True)  # a killed server's, or one that somebody has laid there to keep it open
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(f"{token}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    return token


def _part_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _remove_dead_servers(folder: Path) -> None:
    """Remove what servers left that do not live any more."""
    for path in folder.glob(f"*{LOCK}"):
        stem = path.with_name(path.name.removesuffix(LOCK))
        if (lock := lock_file(path)) is not None:
            with lock, suppress(InputError):  # what is no server's keeps no other one from starting
                _remove_with_token(stem)
                path.unlink(missing_ok=True)
                _LOG.info("removed what a dead server left at %s", stem)


def _remove_with_token(stem: Path) -> None:
    """As `_remove_files`, and the token: in the user's own directory, where it is a server's."""
    token = stem.with_name(stem.name + TOKEN)
    for path in (token, _part_of(token)):
        path.unlink(missing_ok=True)
    _remove_files(stem)


def _remove_files(stem: Path) -> None:
    """Remove a dead server's files; what is not a server's is not touched.

    Raises:
        InputError: there is something else under the socket's name, or that of its uploads.
    """
    uploads = stem.with_name(stem.name + UPLOADS)
    for path, expected, fits in ((stem, "a socket", _is_socket), (uploads, "packs that clients sent", _are_uploads)):
        if (path.exists() or path.is_symlink()) and not fits(path):
            raise InputError(mismatch(str(path), f"{expected}, or nothing", "something else", "choose another --socket"))
    stem.unlink(missing_ok=True)
    shutil.rmtree(uploads, ignore_errors=True)


def remove_at_once(endpoint: Endpoint) -> None:
    """Remove what a server has put on the disk, where its process ends without leaving its blocks."""
    with suppress(OSError, InputError):
        _remove_with_token(endpoint.stem)
    for path in (endpoint.stem, endpoint.token_file):
        if path is not None:
            with suppress(OSError):
                path.with_name(path.name + LOCK).unlink(missing_ok=True)
    if endpoint.token_file is not None:
        with suppress(OSError):
            endpoint.token_file.unlink(missing_ok=True)


def _is_socket(path: Path) -> bool:
    return stat.S_ISSOCK(path.lstat().st_mode)


def _are_uploads(folder: Path) -> bool:
    return stat.S_ISDIR(folder.lstat().st_mode) and all(_UPLOAD.fullmatch(path.name) for path in folder.iterdir())
