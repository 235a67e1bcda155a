"""The publisher's side: a plain directory that any static host or object store can serve.

REPO/metadata/   N.root.json, N.targets.json, N.snapshot.json, timestamp.json
REPO/targets/    NAME/SHA256.VERSION.qpack
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from quad.core.digests import file_digest
from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.files import once_done, sync_directory, write_bytes, writing_to
from quad.core.storage.pack import read_pack
from quad.core.storage.reading import reading_from
from quad.delivery.offer import REVOKED, Offer, Revocation, read_catalogue, revocations, target_path
from quad.delivery.publisher.begin import begin
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repair import Repaired, repair
from quad.delivery.publisher.signed import (
    LIFE_DAYS,
    METADATA,
    ONLINE,
    ROLES,
    ROOT_KEYS,
    expiry,
    now,
    publish,
    write_root,
)
from quad.delivery.publisher.terms import PublishTerms
from quad.delivery.publisher.working_copy import ServedComparison, WorkingCopy

_LOG = logging.getLogger(__name__)


class Refreshed(msgspec.Struct, frozen=True):
    """The result of a refresh: roles signed anew, days that each role has left, and those past half of their life: they need their keys."""

    signed: tuple[str, ...]
    left_days: dict[str, int]
    ageing: tuple[str, ...]


@final
class Repository:
    """A repository that this process may change: every call publishes at once and whole.

    Args:
        folder: the directory that is served.
        keys: of its roles.
        comparison: with what is served, before anything is signed.
    """

    def __init__(self, folder: Path, keys: Keys, comparison: ServedComparison | None = None) -> None:
        keys.require_apart_from(folder)
        self._folder, self._keys = folder, keys
        self._copy = WorkingCopy(folder=folder, keys=keys, comparison=comparison or ServedComparison())

    def init(self) -> Path:
        """Make keys, and an empty repository; one that came to no end is gone on with.

        Returns:
            The first root, which devices are given by another way than the network.

        Raises:
            InputError: there is something at the place.
        """
        with self._copy.locked():
            state, signers = begin(self._folder, self._keys)
            publish(self._folder, state, ONLINE, signers)
        return self._folder / METADATA / "1.root.json"

    def add(self, packs: Sequence[Path], terms: PublishTerms) -> list[Offer]:
        """Offer packs, each as the next version of its adapter.

        Raises:
            VerificationError: a pack was changed. InputError: one is on offer already, or was revoked.
        """
        with self._copy.locked():
            joined, signers = self._copy.open()
            offers = [self._add(joined.state.targets, path, terms) for path in packs]
            publish(self._folder, joined.state, [Targets.type], signers)
        _LOG.info("on offer: %s", ", ".join(offer.label for offer in offers))
        return offers

    def _add(self, targets: Targets, path: Path, terms: PublishTerms) -> Offer:
        pack, catalogue = read_pack(path), read_catalogue(targets)
        sha256 = file_digest(path)
        offered = {offer.sha256: offer.label for offers in catalogue.offers.values() for offer in offers}
        revocation = catalogue.revocation(sha256)
        if sha256 in offered or revocation is not None:
            earlier = f"revoked as {revocation.name}:{revocation.version}" if revocation is not None else f"on offer as {offered[sha256]}"
            raise InputError(mismatch(str(path), "a pack that is new to the repository", f"one that is {earlier}", "leave it out"))
        name = pack.manifest.name
        versions = [offer.terms.version for offer in catalogue.offers.get(name, ())]
        versions += [entry.version for entry in catalogue.revoked if entry.name == name]
        offer = Offer(terms.of_pack(pack, max(versions, default=0) + 1), sha256, path.stat().st_size)
        _copy(path, self._folder / offer.location)
        custom = {"custom": msgspec.to_builtins(offer.terms)}
        path_in_targets = target_path(name, offer.terms.version)
        targets.targets[path_in_targets] = TargetFile(offer.size_bytes, {"sha256": sha256}, path_in_targets, custom)
        return offer

    def revoke(self, specifier: str, reason: str = "") -> list[Revocation]:
        """Withdraw `NAME:VERSION`, or every version of `NAME`: no device installs it any more, and those that have it stop to run it.

        Raises:
            UsageError: nothing of that name is on offer.
        """
        with self._copy.locked():
            joined, signers = self._copy.open()
            state = joined.state
            catalogue = read_catalogue(state.targets)
            catalogue.choose(specifier, lambda _: True)  # there is one, or a line says why not
            name, _, number = specifier.partition(":")
            chosen = [offer for offer in catalogue.offers[name] if number in ("", str(offer.terms.version))]
            withdrawn = [Revocation(name=name, version=offer.terms.version, sha256=offer.sha256, reason=reason) for offer in chosen]
            for offer in chosen:
                del state.targets.targets[target_path(name, offer.terms.version)]
            entries: list[Any] = msgspec.to_builtins([*revocations(state.targets), *withdrawn])
            state.targets.unrecognized_fields[REVOKED] = entries
            publish(self._folder, state, [Targets.type], signers)
            with once_done(f"{', '.join(offer.label for offer in chosen)} is revoked, and that is published"):
                for offer in chosen:
                    (self._folder / offer.location).unlink(missing_ok=True)
        _LOG.info("revoked: %s", ", ".join(f"{entry.name}:{entry.version}" for entry in withdrawn))
        return withdrawn

    def refresh(self) -> Refreshed:
        """Sign `timestamp.json` anew, and what has less than half of its life left and keys at hand."""
        with self._copy.locked():
            joined = self._copy.joined()
            state = joined.state
            at_hand = {role: self._keys.signers(role, state.root, least=0) for role in ONLINE}
            ageing = [role for role, payload in ((Targets.type, state.targets), (Snapshot.type, state.snapshot)) if _is_ageing(payload)]
            changed = [*joined.outdated, *(role for role in ageing if at_hand[role])]
            needed = {*changed, Timestamp.type} | ({Snapshot.type} if Targets.type in changed else set())
            publish(self._folder, state, changed, {role: self._keys.signers(role, state.root) for role in ONLINE if role in needed})
        payloads = (state.root, state.targets, state.snapshot, state.timestamp)
        left = {payload.type: (payload.expires - now()).days for payload in payloads}
        return Refreshed(tuple(role for role in ONLINE if role in needed), left, tuple(p.type for p in payloads if _is_ageing(p)))

    def rotate(self, roles: Sequence[str]) -> int:
        """Give roles new keys, and the root a new version and a new life; the old keys' signatures count no more.

        Raises:
            UsageError: no such role, or keys that are needed are not there.

        Returns:
            The version of the new root.
        """
        unknown = sorted(set(roles) - set(ROLES))
        if unknown or not roles:
            raise UsageError(mismatch("ROLE", f"one of {', '.join(ROLES)}", ", ".join(unknown) or "none", "choose of these"))
        with self._copy.locked():
            joined, signers = self._copy.open(lost=roles)
            state = joined.state
            old, lost = state.root, [role for role in roles if role in ONLINE and not signers[role]]
            before = self._keys.signers(Root.type, old)
            new_signers = {
                role: [self._keys.make(role) for _ in range(ROOT_KEYS if role == Root.type else 1)] for role in dict.fromkeys(roles)
            }
            between = old
            if lost:  # nobody can sign with old and new keys: a root comes first that knows both
                between = _next_root(old, {role: new_signers[role] for role in lost})
                write_root(self._folder, between, before)
            root = _next_root(between, new_signers, instead=True)
            both = {role: [*signers[role], *new_signers.get(role, ())] for role in ONLINE}
            publish(self._folder, state, {*joined.outdated, *(role for role in ONLINE if role in roles)}, both)
            write_root(self._folder, root, [*before, *new_signers.get(Root.type, ())])
            with once_done(f"root {root.version} is published with the new keys"):
                for role in roles:
                    for keyid in old.roles[role].keyids:
                        self._keys.retire(role, keyid)
        return root.version

    def repair(self) -> Repaired:
        """Rebuild what this copy has lost, and join it with what is served; every pack and every revocation of both stays.

        Raises:
            VerificationError: the newest list of packs is lost, and not served.
        """
        with self._copy.locked():
            return repair(self._copy)


def _next_root(old: Root, new_signers: Mapping[str, Sequence[CryptoSigner]], instead: bool = False) -> Root:
    """The root after another, with new keys of roles beside the old ones, or instead of them."""
    root = copy.deepcopy(old)
    root.version, root.expires = old.version + 1, expiry(Root.type, now())
    for role, signers in new_signers.items():
        for keyid in root.roles[role].keyids[:] if instead else ():
            root.revoke_key(keyid, role)
        for signer in signers:
            root.add_key(signer.public_key, role)
    return root


def _is_ageing(payload: Signed) -> bool:
    return payload.expires - now() < timedelta(days=LIFE_DAYS[payload.type]) / 2


def _copy(source: Path, place: Path) -> None:
    """A pack among the targets: whole before anything signed names it."""
    with writing_to(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with reading_from(source):
        data = source.read_bytes()
    write_bytes(place, data)
    sync_directory(place.parent)
    sync_directory(place.parent.parent)
