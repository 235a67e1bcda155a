"""Two copies of one repository: which one has all of the other, and one that has all of both.

A repository's content only grows: packs are offered and revoked, and no revocation is taken back. So a copy that has all of another one may
stand in its place, whatever their numbers. Two copies of which each lacks something are a conflict: what is signed on top of one would lose
what is in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets

from quad.core.digests import canonical_json
from quad.core.errors import RefusedError, mismatch
from quad.delivery.offer import FARTHEST, REVOKED, Offer, Revocation, read_catalogue, revocations, target_path
from quad.delivery.publisher.signed import ONLINE, State


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The state to sign the next one on top of.

    Args:
        state: with the higher version of both copies in each role.
        outdated: roles to sign anew: the other copy has their number, or another root their keys.
        news: in words, what this copy did not have.
    """

    state: State
    outdated: tuple[str, ...] = ()
    news: tuple[str, ...] = ()


@dataclass(frozen=True)
class Merged:
    """A list of packs that has all of two.

    Args:
        moved: offers of this copy that got another version, because the served one has a pack of theirs: before -> after.
    """

    targets: Targets
    moved: tuple[tuple[Offer, Offer], ...]


def join(ours: State, served: State, root: Root, where: str) -> Joined:
    """This copy as it goes on from what is served.

    Args:
        root: the newest that either has.
        where: it is served, for messages.

    Raises:
        RefusedError: each has what the other lacks; nothing may be signed on top of one of them.
    """
    _require_near(ours, served, where)
    news, lacking = differences(ours.targets, served.targets), differences(served.targets, ours.targets)
    if news and lacking:
        they, we = f"{', '.join(news)}, which this copy lacks", f"it lacks {', '.join(lacking)} of this copy"
        next_step = "nothing was signed, another machine has published since: join both with quad publish repair"
        raise RefusedError(mismatch(where, "what this copy goes on from", f"{they}; {we}", next_step))
    theirs = bool(news) or (not lacking and _numbers(served) > _numbers(ours))
    base, other = (served, ours) if theirs else (ours, served)
    outdated = tuple(role for role in ONLINE if not _counts(base, role, root) or _is_overtaken(base, other, role))
    state = replace(base, root=root)
    for role in ONLINE:
        state.payload(role).version = max(base.payload(role).version, other.payload(role).version)
    return Joined(state=state, outdated=outdated, news=tuple(news))


def differences(ours: Targets, theirs: Targets) -> list[str]:
    """In words, each pack and each revocation of a list that another one has not."""
    revoked = {entry.sha256 for entry in revocations(ours)}
    offers, others = _offers(ours), _offers(theirs)
    new = [offer for path, (offer, text) in others.items() if path not in offers or offers[path][1] != text]
    packs = [offer.label for offer in new if offer.sha256 not in revoked]
    withdrawn = [f"the revocation of {entry.name}:{entry.version}" for entry in revocations(theirs) if entry.sha256 not in revoked]
    return packs + withdrawn


def merge(ours: Targets, served: Targets) -> Merged:
    """A list of packs with all offers and revocations of two; what is served keeps its versions.

    Where both have a version of one name that is not the same pack, ours becomes the next one.
    """
    targets = copy.deepcopy(served)
    known = {entry.sha256 for entry in revocations(served)}
    withdrawn = [*revocations(served), *(entry for entry in revocations(ours) if entry.sha256 not in known)]
    entries: list[Any] = msgspec.to_builtins(withdrawn)
    targets.unrecognized_fields[REVOKED] = entries
    revoked = {entry.sha256 for entry in withdrawn}
    here = _offers(served)
    for path, (offer, _) in here.items():
        if offer.sha256 in revoked:
            del targets.targets[path]
    there = {offer.sha256 for offer, _ in here.values()}
    moved = []
    for path, (offer, _) in _offers(ours).items():
        if offer.sha256 in there or offer.sha256 in revoked:
            continue
        taken = {*_versions(targets, withdrawn, offer.terms.name)}
        version = max(taken) + 1 if offer.terms.version in taken else offer.terms.version
        after = replace(offer, terms=msgspec.structs.replace(offer.terms, version=version))
        if after != offer:
            moved.append((offer, after))
        new_path = target_path(offer.terms.name, version)
        custom = {"custom": msgspec.to_builtins(after.terms)}
        targets.targets[new_path] = TargetFile(offer.size_bytes, dict(ours.targets[path].hashes), new_path, custom)
    return Merged(targets, tuple(moved))


def _versions(targets: Targets, withdrawn: list[Revocation], name: str) -> set[int]:
    on_offer = {offer.terms.version for offer, _ in _offers(targets).values() if offer.terms.name == name}
    return on_offer | {entry.version for entry in withdrawn if entry.name == name}


def _offers(targets: Targets) -> Mapping[str, tuple[Offer, bytes]]:
    """By path: the offer, and all that is signed of it."""
    offers = {offer.label: offer for versions in read_catalogue(targets).offers.values() for offer in versions}
    by_path = {target_path(offer.terms.name, offer.terms.version): offer for offer in offers.values()}
    return {path: (offer, canonical_json(targets.targets[path].to_dict())) for path, offer in by_path.items()}


def _require_near(ours: State, served: State, where: str) -> None:
    """Refuse numbers that no publisher has counted up to, before they are counted on from."""
    for role in ONLINE:
        most, version = ours.payload(role).version + FARTHEST, served.payload(role).version
        if version > most:
            next_step = "nothing was signed, its key may have been stolen: quad publish rotate --no-compare"
            raise RefusedError(mismatch(f"{where}, {role}", f"a version of at most {most}", version, next_step))


def _numbers(state: State) -> tuple[int, ...]:
    return tuple(state.payload(role).version for role in ONLINE)


def _is_overtaken(base: State, other: State, role: str) -> bool:
    """Whether a role's number is no longer the highest, or stands for other bytes elsewhere."""
    ours, theirs = base.payload(role).version, other.payload(role).version
    same_number = role == Snapshot.type and ours == theirs and base.files[role] != other.files[role]
    return theirs > ours or same_number


def _counts(state: State, role: str, root: Root) -> bool:
    """Whether the newest root's keys have signed a role."""
    metadata: Metadata[Any] = Metadata.from_bytes(state.files[role])
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return True
