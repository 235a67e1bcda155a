"""Links in a directory that comes from elsewhere: they may not lead out of it, except to where a hub's cache keeps what it links to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quad.core.errors import InputError, mismatch


def contained(directory: Path, file: Path, owner: str) -> Path:
    """`file`, once it is known to lie in its directory, or among the blobs of the cached repository whose snapshot the directory is in.

    Args:
        owner: of the directory, for the message.

    Raises:
        InputError: it is a link to somewhere else, or to itself.
    """
    try:
        real, home = file.resolve(), directory.resolve()
    except (OSError, RuntimeError) as error:  # before Python 3.13 a circle of links is a RuntimeError
        raise InputError(mismatch(f"{file}", f"a file of the {owner}'s directory", "links in a circle", "copy the file in")) from error
    if not (real.is_relative_to(home) or any(real.is_relative_to(blobs) for blobs in _blobs(home))):
        raise InputError(
            mismatch(f"{file}", f"a file of the {owner}'s directory", "a link out of it", "copy the file in, or name it itself")
        )
    return file


def _blobs(home: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a directory that lies anywhere in a snapshot: `REPOSITORY/snapshots/REVISION/...`."""
    snapshots = next((above.parent for above in (home, *home.parents) if above.parent.name == "snapshots"), None)
    return [] if snapshots is None else [snapshots.parent / "blobs"]


def require_contained(directory: Path, folders: Iterable[str], owner: str) -> None:
    """Refuse a directory with a link out of it among its own entries and those of `folders` in it."""
    for folder in (directory, *(directory / name for name in folders)):
        contained(directory, folder, owner)
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            contained(directory, file, owner)
