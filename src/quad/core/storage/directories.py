"""Directories that are replaced whole: the old one is at the name, or the new one."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quad.core.errors import BackendError, InputError, QuadError
from quad.core.storage.exchange import exchange
from quad.core.storage.files import disk_error, real_path, require_writable, sync_directory, writing_to
from quad.core.storage.parts import new_directory_part, old_name, sweep, try_lock


def require_replaceable(final: Path, marker: str, option: str = "-o") -> None:
    """Refuse, before the work for it is done, a place that `new_directory` would refuse after it.

    Args:
        option: what named the place, for the message.

    Raises:
        InputError: `final` exists and is something else.
        BackendError: nothing can be there: a link in a circle, a disk that is not written to, or the system does not say.
    """
    _require_ours(final, marker, option)
    require_writable(_led_to(final))


def _led_to(final: Path) -> Path:
    """The place itself, or where it leads if it is a link."""
    return real_path(final) if final.is_symlink() else final


def _require_ours(final: Path, marker: str, option: str) -> None:
    """Refuse a place that holds something else than what would be written: it must not be there, be empty, or hold a file `marker`."""
    with writing_to(final):
        try:
            final.stat()
        except FileNotFoundError:
            return
        occupied = not (final.is_dir() and ((final / marker).exists() or not any(final.iterdir())))
    if occupied:
        raise InputError(f"{final}: expected a new directory or one with {marker}, found something else; choose another {option}")


@contextmanager
def new_directory(final: Path, marker: str, option: str = "-o") -> Iterator[Path]:
    """A temporary directory that becomes `final` when the block ends well, and vanishes when it does not.

    An existing `final` is replaced only if it holds a file `marker` (it is one of ours) or is empty. Where the system can exchange two
    names (Linux, on most file systems) there is the old or the new one at each moment. Elsewhere nothing is there between two renames; a
    process that is killed just then leaves the old one hidden beside it, and the next one that writes there puts it back first.

    Raises:
        InputError: `final` exists and is something else.
        BackendError: the disk is full or the place cannot be written to.
    """
    _require_ours(final, marker, option)
    final = _led_to(final)
    with writing_to(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final)
        stage, handle = new_directory_part(final)
    try:
        yield stage
        _sync_tree(stage)
        _take_place(stage, final, marker, option)
        sync_directory(final.parent)
    except OSError as error:
        raise disk_error(final, error) from error
    except BackendError as error:
        cause = error.__cause__
        if error.place is None or not error.place.is_relative_to(stage) or not isinstance(cause, OSError):
            raise
        raise disk_error(final / error.place.relative_to(stage), cause) from cause  # by the name that it was to have
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Have all files of a directory on the disk before they get their name."""
    if sys.platform == "win32":
        return
    for place, _, names in os.walk(folder):
        for path in (*(os.path.join(place, name) for name in names), place):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _take_place(stage: Path, final: Path, marker: str, option: str) -> None:
    """Give a whole directory its name; what was there is at the other name afterwards, or gone."""
    if not final.exists():
        os.replace(stage, final)
        return
    stage.chmod(stat.S_IMODE(final.stat().st_mode))
    if not exchange(stage, final):
        _replace_in_two_steps(stage, final)
        return
    try:
        _require_ours(stage, marker, option)
    except QuadError:  # something else came to the name while this was written
        exchange(stage, final)
        _require_ours(final, marker, option)
        raise


def _replace_in_two_steps(stage: Path, final: Path) -> None:
    old = old_name(stage)
    handle = None if sys.platform == "win32" else os.open(final, os.O_RDONLY)
    try:
        if handle is not None:
            try_lock(handle)  # a dead writer's is put back
        os.replace(final, old)
        try:
            os.replace(stage, final)
        except OSError:
            os.replace(old, final)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if handle is not None:
            os.close(handle)
