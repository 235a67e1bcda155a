"""Writing whole or not at all, and never leaving a directory by a name."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from quad.core.errors import BackendError, InputError, QuadError, VerificationError, mismatch
from quad.core.storage.parts import new_file_part, sweep, try_lock

TEMPORARY = "set TMPDIR to another place"
_NOTHING, _ELSEWHERE = "nothing was written", "choose another place"
# What more space does not mend; an error without a number, or of the device, may come of a full disk.
_NOT_FOR_SPACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
_LONGEST_NAME = 255  # bytes, of one part of a path


def real_path(path: Path) -> Path:
    """Where links lead in the end; links in a circle stay as they are, and whoever opens them is told."""
    return Path(os.path.realpath(path))  # before Python 3.13 Path.resolve() raises RuntimeError there


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`.

    Raises:
        VerificationError: the name is absolute, climbs out, or goes through a link out of `root`.
    """
    pure = PurePosixPath(name)
    strange = "\\" in name or "\0" in name or any(len(part.encode()) > _LONGEST_NAME for part in pure.parts)
    if pure.is_absolute() or ".." in pure.parts or strange or not pure.parts:
        raise VerificationError(f"{root}: expected file names inside the directory, found {name!r}; the manifest is not to be trusted")
    path = root / pure
    if not real_path(path).is_relative_to(real_path(root)):
        raise VerificationError(f"{root}: {name!r} is a link out of the directory; the manifest is not to be trusted")
    return path


def disk_error(where: Path | str, error: OSError, state: str = _NOTHING, instead: str = _ELSEWHERE) -> BackendError:
    """The line for an error of the system while writing.

    Args:
        state: what is there now.
        instead: what to do other than to free some space, and alone where space is not what lacks.
    """
    reason = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    next_step = instead if error.errno in _NOT_FOR_SPACE else f"free some space or {instead}"
    failure = BackendError(f"{where}: cannot write ({reason}); {state}, {next_step}")
    failure.place = Path(where)
    return failure


@contextmanager
def writing_to(place: Path | str, instead: str = _ELSEWHERE) -> Iterator[None]:
    """An error of the system while writing there becomes one line that names the place, not that of a block around this one.

    Raises:
        BackendError: for every OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(place, error, instead=instead) from error


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for temporary files, gone when the block ends.

    Raises:
        BackendError: the disk is full, or there is no place for temporary files.
    """
    with writing_to("temporary files", TEMPORARY), tempfile.TemporaryDirectory(prefix="quad-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def write_bytes(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file whole, see `new_file`.

    Raises:
        InputError, BackendError: as `new_file`.
    """
    with new_file(path, mode) as stream:
        stream.write(data)


@contextmanager
def new_file(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file that gets its name, whole and on the disk, when the block ends well, and vanishes when it does not.

    Args:
        mode: its permissions; None for those of the file that it replaces, where there is one, else as the user's umask has it.

    Raises:
        InputError: something else than a regular file is at `path`: a directory, a link, a device, a pipe.
        BackendError: the disk is full or the place cannot be written to; the message says what is at `path` then.
    """
    part = before = None
    try:
        before = require_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        part, handle = new_file_part(path, 0o666 if mode is None else mode)
        with open(handle, "wb") as stream:
            if mode is None and before is not None and sys.platform != "win32":
                os.fchmod(handle, stat.S_IMODE(before.st_mode))
            yield stream
            stream.flush()
            os.fsync(handle)
            if sys.platform == "win32":
                stream.close()  # it renames no open file; elsewhere the lock is held until the name is changed
            os.replace(part, path)
    except OSError as error:
        raise disk_error(path, error, _state(path, before)) from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def require_file(path: Path) -> os.stat_result | None:
    """The file that is to be replaced; None where there is none.

    Raises:
        InputError: something else than a regular file is there. BackendError: nothing can be there.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_error(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise InputError(mismatch(str(path), "a new name or a file to replace", kind, "it is left as it is; choose another name"))
    return status


def require_writable(place: Path) -> None:
    """Refuse, before the work for it is done, a name that nothing can get: a byte is written in its nearest directory, and goes again.

    Raises:
        BackendError: the system does not let it be written, or the disk is full.
    """
    with writing_to(place):
        with suppress(FileNotFoundError):
            place.lstat()  # no name of it is too long, nor a file where a directory has to be
        folder = next(parent for parent in place.absolute().parents if os.path.lexists(parent))
        part, handle = new_file_part(folder / place.name, 0o600)
        try:
            os.write(handle, b"\0")
            os.fsync(handle)
        finally:
            os.close(handle)
            part.unlink()


def _state(path: Path, before: os.stat_result | None) -> str:
    """The state of a path after writing there has failed, in words."""
    try:
        now = path.lstat()
    except OSError:
        return _NOTHING
    return "the earlier file is unchanged" if before is not None and os.path.samestat(before, now) else "another file is there now"


@contextmanager
def once_done(deed: str) -> Iterator[None]:
    """An error of the system in the block is one of what comes after a deed, and says that the deed is done.

    Args:
        deed: a whole sentence without its point.

    Raises:
        BackendError: for every BackendError and OSError of the block.
    """
    try:
        yield
    except (BackendError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = f"{cause.filename or ''} {cause.strerror}".strip() if isinstance(cause, OSError) else str(error)
        raise BackendError(f"{deed}; what comes after that failed ({reason}), and may be lost or left over: check the disk") from error


def sync_directory(folder: Path) -> None:
    """Wait until names made, changed and removed in a directory are on the disk, where the system can tell.

    Raises:
        BackendError: the disk cannot keep them.
    """
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except PermissionError:
        return  # one that may be written to, but not read: it cannot be asked
    except OSError as error:
        raise disk_error(folder, error, "what was changed there may be lost if the power fails", "check the disk") from error


@contextmanager
def directory_lock(folder: Path, in_use: QuadError) -> Iterator[None]:
    """While the block runs no other process is in a block of the same directory, where the system and the disk know locks.

    The directory itself is locked: nothing is left behind, however the process ends.

    Raises:
        QuadError: `in_use`, where another process is in one.
        BackendError: the directory cannot be made.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    with writing_to(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        if try_lock(handle) is False:
            raise in_use
        yield
    finally:
        os.close(handle)
