"""The lock file that says that a server lives. The system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from quad.core.errors import InputError, mismatch
from quad.core.storage.files import writing_to

LOCK = ".lock"


@contextmanager
def locked(stem: Path) -> Iterator[None]:
    """Raises:
    InputError: another server holds this stem, or its lock is no lock.
    """
    path = stem.with_name(stem.name + LOCK)
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path)
    if lock is None:
        raise InputError(mismatch(str(stem), "no server there yet", "a running one", "use that one, or choose another place"))
    with lock:
        if os.fstat(lock.fileno()).st_size:
            raise InputError(mismatch(str(path), "a lock, which is empty", "something else", "choose another place"))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_file(path: Path) -> IO[bytes] | None:
    """The lock file, held; None where another process holds it. A file that was removed before it was locked is no lock: again."""
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        stream.close()
