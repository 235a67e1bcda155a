"""Mend a copy that has lost files, and join one with what another machine has published meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
from tuf.api.metadata import Snapshot, Targets

from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.storage.files import write_bytes
from quad.core.storage.reading import is_file, reading_from
from quad.delivery.offer import Offer
from quad.delivery.publisher.joining import Merged, differences, merge
from quad.delivery.publisher.salvage import Salvage, of_state, require_list, require_timestamp, salvage
from quad.delivery.publisher.signed import ONLINE, empty_state, newest_root, publish, put
from quad.delivery.publisher.working_copy import WorkingCopy


class Repaired(msgspec.Struct, frozen=True):
    """The result of a repair.

    Args:
        signed: roles signed anew; none where nothing was lost and nothing to join.
        joined: in words, what this copy did not have.
        renumbered: packs of this copy that got another version, since one of theirs is served: before -> after.
    """

    signed: tuple[str, ...]
    joined: tuple[str, ...]
    renumbered: dict[str, str]


def repair(work: WorkingCopy) -> Repaired:
    """Sign one state that has everything of this copy and of what is served, above the numbers of both.

    Raises:
        VerificationError: the newest list of packs, or the timestamp, is lost and not served. InputError: a pack's file is missing.
    """
    root = newest_root(work.folder)
    ours = salvage(work.folder, root)
    try:
        served = work.served(root)
    except VerificationError as error:
        raise VerificationError(f"{error}; where what is served cannot be restored, --no-compare repairs this copy alone") from error
    theirs = None if served is None else of_state(served.state)
    numbers = {role: max(copy.numbers[role] for copy in (ours, theirs) if copy and role in copy.numbers) for role in ours.numbers}
    numbers = {**(theirs.numbers if theirs else {}), **numbers}
    require_timestamp(work.folder, numbers)
    merged, data, news = _list(work.folder, ours, theirs)
    if ours.is_whole and data is not None and not news:
        return Repaired((), (), {})
    state = empty_state(root if served is None else served.state.root if served.roots else root)
    state = replace(state, targets=merged.targets, files={} if data is None else {Targets.type: data})
    changed = {Snapshot.type} | ({Targets.type} if data is None or merged.targets.version < numbers[Targets.type] else set())
    needed = [role for role in ONLINE if role != Targets.type or role in changed]
    signers = {role: work.keys.signers(role, state.root) for role in needed}
    for before, after in merged.moved:
        _copy_pack(work.folder, before, after)
    if served is not None:
        work.write_roots(served)
    if data is not None:
        put(work.folder, f"{merged.targets.version}.targets.json", data)
    for role in ONLINE:
        state.payload(role).version = numbers[role]
    publish(work.folder, state, changed, signers)
    return Repaired(tuple(needed), tuple(news), {before.label: after.label for before, after in merged.moved})


def _list(folder: Path, ours: Salvage, theirs: Salvage | None) -> tuple[Merged, bytes | None, list[str]]:
    """The list of packs to go on with; its bytes where it is signed already; what of it is new here."""
    if theirs is None or theirs.targets is None:
        require_list(folder, ours)
        return Merged(_whole_list(ours), ()), ours.data, []
    if ours.targets is None or (not ours.is_whole and ours.targets.version < ours.numbers[Targets.type] == theirs.numbers[Targets.type]):
        return Merged(theirs.targets, ()), theirs.data, [] if ours.targets is None else differences(ours.targets, theirs.targets)
    require_list(folder, ours)
    news, lacking = differences(ours.targets, theirs.targets), differences(theirs.targets, ours.targets)
    if news and lacking:
        return merge(ours.targets, theirs.targets), None, news
    if news or (not lacking and theirs.targets.version > ours.targets.version):
        return Merged(theirs.targets, ()), theirs.data, news
    return Merged(ours.targets, ()), ours.data, []


def _whole_list(remains: Salvage) -> Targets:
    assert remains.targets is not None
    return remains.targets


def _copy_pack(folder: Path, before: Offer, after: Offer) -> None:
    """A pack under its new version, whole before anything signed names it."""
    source, place = folder / before.location, folder / after.location
    if not is_file(source):
        next_step = f"nothing was signed, put the file there: it becomes {after.label}"
        raise InputError(mismatch(str(source), f"the pack {before.label} of this copy", "no file", next_step))
    with reading_from(source):
        data = source.read_bytes()
    write_bytes(place, data)
