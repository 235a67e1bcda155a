"""The copy of a repository that devices see, read before anything is signed.

Its address is kept in `REPO/publisher.json`, which needs no upload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.api.metadata import MetaFile, Root

from quad.core.digests import canonical_json
from quad.core.errors import BackendError, RefusedError, VerificationError, mismatch
from quad.core.storage.files import write_bytes
from quad.core.storage.reading import is_file, reading_from
from quad.delivery.publisher.signed import LARGEST_LIST, METADATA, State, load_state, read_file, verified
from quad.delivery.source import Source

ADDRESS_FILE = "publisher.json"
_MISSING = (403, 404, 410)
_MOST_ROOTS = 1000


class _Address(msgspec.Struct, frozen=True):
    url: str


@dataclass(frozen=True)
class Served:
    """A repository as it is served.

    Args:
        where: its address, for messages.
        state: under the newest root that is served.
        roots: those that this copy lacks, by number.
    """

    where: str
    state: State
    roots: Mapping[int, bytes]


def remembered_address(repository: Path) -> str | None:
    """The address that was said last; None where nobody has.

    Raises:
        VerificationError: the file is damaged. BackendError: it cannot be read.
    """
    path = repository / ADDRESS_FILE
    if not is_file(path):
        return None
    with reading_from(path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=_Address).url
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VerificationError(mismatch(str(path), "an address", f"something else ({error})", "give --url again")) from error


def remember_address(repository: Path, source: Source) -> None:
    """Keep an address for the next call.

    Raises:
        BackendError: the disk is full or the place cannot be written to.
    """
    write_bytes(repository / ADDRESS_FILE, canonical_json(_Address(source.name)))


def read_served(repository: Path, root: Root, source: Source) -> Served | None:
    """The repository as devices see it, every signature and digest checked; None where nothing is served yet.

    Args:
        root: the newest of this copy.

    Raises:
        RefusedError: another root of the same number is served. VerificationError: something else is served than publishers have signed.
        BackendError: it cannot be reached.
    """
    where = f"{source.name}/{METADATA}"
    for number in range(root.version, 0, -1):
        data = _read(source, f"{number}.root.json")
        if data is None:
            continue
        if data != read_file(repository, f"{number}.root.json"):
            next_step = "nothing was signed, another machine has rotated keys: go on from a copy of what is served, and rotate there"
            raise RefusedError(mismatch(f"{where}/{number}.root.json", "the root of this copy", "another one of its number", next_step))
        newest, roots = _newer_roots(verified(f"{where}/{number}.root.json", data, Root, None), source)
        if _read(source, "timestamp.json") is None:
            return None
        return Served(source.name, load_state(newest, lambda name: _read(source, name), where), roots)
    return None


def _newer_roots(root: Root, source: Source) -> tuple[Root, dict[int, bytes]]:
    """The newest root that is served, each signed by the keys of the one before it and by its own."""
    roots: dict[int, bytes] = {}
    for number in range(root.version + 1, root.version + _MOST_ROOTS):
        name = f"{number}.root.json"
        data = _read(source, name)
        if data is None:
            break
        where = f"{source.name}/{METADATA}/{name}"
        verified(where, data, Root, root, MetaFile(number))
        root = verified(where, data, Root, None)
        roots[number] = data
    return root, roots


def _read(source: Source, name: str) -> bytes | None:
    """A file of served metadata; None where there is none."""
    where = f"{source.name}/{METADATA}/{name}"
    try:
        data = bytearray()
        for chunk in source.open(f"{METADATA}/{name}", 0, LARGEST_LIST).chunks:
            data += chunk
            if len(data) > LARGEST_LIST:
                raise VerificationError(mismatch(where, f"at most {LARGEST_LIST} bytes", "more", "nothing was signed, check the address"))
    except DownloadHTTPError as error:
        if error.status_code in _MISSING:
            return None
        raise _unreachable(where, error) from error
    except DownloadError as error:
        raise _unreachable(where, error) from error
    return bytes(data)


def _unreachable(where: str, error: DownloadError) -> BackendError:
    next_step = "nothing was signed, check the address and the network; --no-compare where it is gone for good"
    return BackendError(mismatch(where, "an answer", str(error), next_step))
