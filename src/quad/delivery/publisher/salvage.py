"""The parts that are still whole of a copy of a repository that has lost files, or has had them damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tuf.api.metadata import Root, Signed, Snapshot, Targets, Timestamp

from quad.core.errors import VerificationError, mismatch
from quad.delivery.publisher.signed import METADATA, ONLINE, State, file_numbers, read_file, read_state, verified

T = TypeVar("T", bound=Signed)


@dataclass(frozen=True, kw_only=True)
class Salvage:
    """The remains of a copy.

    Args:
        targets, data: the newest whole list of packs, and its bytes; None where there is none.
        numbers: the highest of each role that anything tells of; none of `timestamp` where that file is lost.
        is_whole: nothing is lost.
    """

    targets: Targets | None
    data: bytes | None
    numbers: dict[str, int]
    is_whole: bool


def salvage(repository: Path, root: Root) -> Salvage:
    """Look at every file of a copy.

    Raises:
        BackendError: one cannot be read.
    """
    try:
        return of_state(read_state(repository))
    except VerificationError:
        pass
    numbers = {role: max(file_numbers(repository, role), default=0) for role in (Targets.type, Snapshot.type)}
    timestamp = _whole(repository, "timestamp.json", Timestamp, root)
    if timestamp is not None:
        numbers[Timestamp.type] = timestamp.version
        numbers[Snapshot.type] = max(numbers[Snapshot.type], timestamp.snapshot_meta.version)
    snapshot = _newest(repository, Snapshot, root)
    if snapshot is not None:
        numbers[Targets.type] = max(numbers[Targets.type], snapshot.meta["targets.json"].version)
    targets = _newest(repository, Targets, root)
    data = None if targets is None else read_file(repository, f"{targets.version}.targets.json")
    return Salvage(targets=targets, data=data, numbers=numbers, is_whole=False)


def of_state(state: State) -> Salvage:
    """A copy that has lost nothing."""
    numbers = {role: state.payload(role).version for role in ONLINE}
    return Salvage(targets=state.targets, data=state.files[Targets.type], numbers=numbers, is_whole=True)


def require_list(place: Path, remains: Salvage) -> None:
    """Refuse to go on where the newest list of packs is lost: nobody knows what it offered and revoked.

    Raises:
        VerificationError: it is.
    """
    newest = remains.numbers[Targets.type]
    if remains.targets is None or remains.targets.version < newest:
        next_step = "copy it back from a backup or another machine, or go on from a copy of what is served"
        name = f"{max(newest, 1)}.targets.json"
        raise VerificationError(mismatch(str(place / METADATA / name), "the newest list of packs", "none that is whole", next_step))


def require_timestamp(place: Path, numbers: dict[str, int]) -> None:
    """Refuse to go on where nobody knows how far the timestamp has counted.

    Raises:
        VerificationError: it is lost.
    """
    if Timestamp.type not in numbers:
        next_step = "say with --url where the repository is served, or copy the file back from there"
        raise VerificationError(mismatch(str(place / METADATA / "timestamp.json"), "the newest timestamp", "none that is whole", next_step))


def _newest(repository: Path, kind: type[T], root: Root) -> T | None:
    whole = (_whole(repository, f"{number}.{kind.type}.json", kind, root) for number in reversed(file_numbers(repository, kind.type)))
    return next((payload for payload in whole if payload is not None), None)


def _whole(repository: Path, name: str, kind: type[T], root: Root) -> T | None:
    try:
        return verified(str(repository / METADATA / name), read_file(repository, name), kind, root)
    except VerificationError:
        return None
