"""Writing whole or not at all, and never leaving a directory by a name."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from quad.core.errors import BackendError, InputError, QuadError, VerificationError

TEMPORARY = "set TMPDIR to another place"
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


def _disk_error(where: Path | str, error: OSError, instead: str = "choose another place") -> BackendError:
    reason = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return BackendError(f"{where}: cannot write ({reason}); nothing was written, free some space or {instead}")


@contextmanager
def writing_to(place: Path | str, instead: str = "choose another place") -> Iterator[None]:
    """An error of the system while writing there becomes one line that names the place, not that of a block around this one.

    Raises:
        BackendError: for every OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise _disk_error(place, error, instead) from error


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for temporary files, gone when the block ends.

    Raises:
        BackendError: the disk is full, or there is no place for temporary files.
    """
    with writing_to("temporary files", TEMPORARY), tempfile.TemporaryDirectory(prefix="quad-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: to a temporary name beside it, then rename.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # where the place itself is wrong, so is this; the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise _disk_error(path, error) from error


def sync_directory(folder: Path) -> None:
    """Wait until names made, changed and removed in a directory are on the disk, where the system can tell.

    Raises:
        BackendError: the disk cannot keep them.
    """
    if sys.platform == "win32":
        return
    with writing_to(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise in_use from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)


def require_replaceable(final: Path, marker: str, option: str = "-o") -> None:
    """Refuse a place that holds something else than what would be written: it must not be there, be empty, or hold a file `marker`.

    Args:
        option: what named the place, for the message.

    Raises:
        InputError: `final` exists and is something else.
        BackendError: nothing can be there.
    """
    with writing_to(final):
        occupied = final.exists() and not (final.is_dir() and ((final / marker).exists() or not any(final.iterdir())))
    if occupied:
        raise InputError(f"{final}: expected a new directory or one with {marker}, found something else; choose another {option}")


@contextmanager
def new_directory(final: Path, marker: str, option: str = "-o") -> Iterator[Path]:
    """A temporary directory that becomes `final` when the block ends well, and vanishes when it does not.

    An existing `final` is replaced only if it holds a file `marker` (it is one of ours) or is empty. It is put aside, not removed, until
    the new one has its name: whatever fails, one of the two is there.

    Raises:
        InputError: `final` exists and is something else.
        BackendError: the disk is full or the place cannot be written to.
    """
    require_replaceable(final, marker, option)
    final = real_path(final) if final.is_symlink() else final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise _disk_error(final, error) from error
    old = stage.with_name(f"{stage.name}.old")
    try:
        yield stage
        stage.chmod(0o755)
        if final.exists():
            os.replace(final, old)
        os.replace(stage, final)
    except OSError as error:
        raise _disk_error(final, error) from error
    finally:
        if old.exists() and not final.exists():
            os.replace(old, final)
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
