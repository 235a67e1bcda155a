"""Content on its way to a name: `.NAME.RANDOM.part` beside it, locked for as long as its writer lives.

Nobody can lay anything at a name that is drawn, so nothing that lies there is followed, opened or waited for. Who writes to the same place
next removes what dead writers have left: it gets their locks. Where the system or the disk knows no locks, nothing is removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

PART, OLD = "part", "old"  # new content; what it takes the place of, where the system cannot exchange two names
_NAME_LETTERS = 48  # of the place's own name: with what is added no more than the 255 bytes of a name
_NOFOLLOW, _CLOEXEC = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | _NOFOLLOW | _CLOEXEC | getattr(os, "O_NONBLOCK", 0)


def new_file_part(path: Path, mode: int) -> tuple[Path, int]:
    """A new, empty file for what `path` will hold, and its handle, which holds the lock.

    Args:
        mode: as `os.open` takes it.

    Raises:
        OSError: the system does not let it be made.
    """
    while True:
        part = _part_of(path)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC | getattr(os, "O_BINARY", 0), mode)
        if _is_locked_in_place(part, handle):
            return part, handle
        os.close(handle)


def new_directory_part(path: Path) -> tuple[Path, int | None]:
    """As `new_file_part`, a directory; no handle on Windows, which opens none."""
    while True:
        part = _part_of(path)
        part.mkdir()
        if sys.platform == "win32":
            return part, None
        try:
            handle = os.open(part, _READ)
        except FileNotFoundError:
            continue  # swept before it was locked
        except OSError:
            part.rmdir()
            raise
        if _is_locked_in_place(part, handle):
            return part, handle
        os.close(handle)


def old_name(part: Path) -> Path:
    """Where what a directory takes the place of is put aside."""
    return part.with_suffix(f".{OLD}")


def sweep(path: Path) -> None:
    """Remove what dead writers of a path have left beside it; what one of them had put aside comes back where nothing is at the path."""
    if sys.platform == "win32":
        return
    pattern = re.compile(rf"\.{re.escape(path.name[:_NAME_LETTERS])}\.[0-9a-f]{{16}}\.({PART}|{OLD})")
    with suppress(OSError):
        for name in sorted(os.listdir(path.parent)):
            if pattern.fullmatch(name):
                _remove_dead(path.with_name(name), path)


def try_lock(handle: int) -> bool | None:
    """Lock an open file or directory: False where another process has it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name[:_NAME_LETTERS]}.{secrets.token_hex(8)}.{PART}")


def _is_locked_in_place(part: Path, handle: int) -> bool:
    """Lock a new part; False where somebody who sweeps was faster."""
    if try_lock(handle) is False:
        return False
    try:
        return os.path.samestat(part.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove_dead(part: Path, path: Path) -> None:
    with suppress(OSError):
        status = part.lstat()
        is_directory = stat.S_ISDIR(status.st_mode)
        if status.st_uid != os.geteuid() or not (is_directory or stat.S_ISREG(status.st_mode)):
            return
        handle = os.open(part, _READ)
        try:
            if not try_lock(handle):
                return
            if part.suffix == f".{OLD}" and not os.path.lexists(path):
                part.rename(path)
            elif is_directory:
                shutil.rmtree(part)
            else:
                part.unlink()
        finally:
            os.close(handle)
