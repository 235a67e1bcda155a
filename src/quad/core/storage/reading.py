"""Looking at the disk: what the system does not let be read is an error, never "nothing there".

`Path.glob` and, from Python 3.14 on, `Path.is_file` and its like answer as if a place were empty when they may not look into it. Whoever
removes or replaces things on such a word destroys what is good; these functions answer for a place only where the system has answered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quad.core.errors import BackendError, mismatch


@contextmanager
def reading_from(place: Path | str) -> Iterator[None]:
    """An error of the system while reading there becomes one line that names the file, or else the place.

    Raises:
        BackendError: for every OSError of the block.
    """
    try:
        yield
    except OSError as error:
        next_step = "nothing was changed, check its permissions and its disk"
        where = error.filename if isinstance(error.filename, str) else place
        raise BackendError(mismatch(str(where), "something that can be read", error.strerror or str(error), next_step)) from error


def entry_names(folder: Path) -> list[str]:
    """Names of what lies in a directory, sorted; none where there is no such directory.

    Raises:
        BackendError: it is there, or may be, and cannot be listed.
    """
    with reading_from(folder):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []


def files_below(folder: Path) -> list[Path]:
    """Every regular file below a directory, links to files included, sorted.

    Raises:
        BackendError: the directory, or one below it, cannot be listed; a list that lacks some would pass for the whole.
    """

    def refuse(error: OSError) -> None:
        raise error

    with reading_from(folder):
        paths = [Path(top, name) for top, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(filter(is_file, paths))


def file_status(path: Path) -> os.stat_result | None:
    """The status of a file, links followed; None where nothing is there, or a link leads to nothing.

    Raises:
        BackendError: it may be there: the system does not say.
    """
    with reading_from(path):
        try:
            return os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_file(path: Path) -> bool:
    """Whether a regular file is there.

    Raises:
        BackendError: as `file_status`.
    """
    status = file_status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_directory(path: Path) -> bool:
    """Whether a directory is there.

    Raises:
        BackendError: as `file_status`.
    """
    status = file_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)
