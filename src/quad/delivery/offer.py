"""The offer of a repository: packs with the terms they set a device, and the packs that it has withdrawn. All of it is signed.

A target is called `NAME/VERSION.qpack`; its custom part holds `Terms`. Withdrawn packs are a field of the targets role, `quad_revoked`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from tuf.api.metadata import TargetFile, Targets

from quad.core.errors import UsageError, VerificationError, mismatch
from quad.core.manifest import AdapterName
from quad.core.storage.install_pointers import Sha256, Version
from quad.core.storage.pack import PACK_SUFFIX

REVOKED = "quad_revoked"
FARTHEST = 1_000_000  # versions that a role may be ahead of its last one: an hourly timestamp makes as many in a century
LARGEST_PACK = 1 << 33  # bytes; a larger one is damage, or meant to fill the disk
Number = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Release = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}\Z")]
TaskName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements of a pack on a device.

    Args:
        slots, profile: digests that the bundle must have.
        graph: digest of the graph, where the pack names one.
        at_least, below: releases of quad that can run it, the second one no more.
        min_ram_bytes: memory that the device must have in all.
        tasks: what the adapter is for.
    """

    name: AdapterName
    version: Number
    slots: Sha256
    profile: Sha256
    at_least: Release
    below: Release
    min_ram_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    tasks: tuple[TaskName, ...] = ()
    graph: Sha256 | msgspec.UnsetType = msgspec.UNSET


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """A pack that must not run any more, wherever it lies."""

    name: AdapterName
    version: Number
    sha256: Sha256
    reason: str = ""


@dataclass(frozen=True)
class Offer:
    """One pack in a repository: its terms, and the digest and bytes of its file."""

    terms: Terms
    sha256: str
    size_bytes: int

    @property
    def label(self) -> str:
        return f"{self.terms.name}:{self.terms.version}"

    @property
    def location(self) -> str:
        """Where it lies below the repository: made of checked names and a digest alone."""
        return f"targets/{self.terms.name}/{self.sha256}.{self.terms.version}{PACK_SUFFIX}"

    @property
    def version(self) -> Version:
        return Version(self.terms.version, self.sha256, self.size_bytes)


@dataclass(frozen=True)
class Catalogue:
    """Packs on offer, by name with versions rising, and packs withdrawn."""

    offers: dict[str, tuple[Offer, ...]]
    revoked: tuple[Revocation, ...]

    def revocation(self, sha256: str) -> Revocation | None:
        """Why a pack was withdrawn; None where it was not."""
        return next((entry for entry in self.revoked if entry.sha256 == sha256), None)

    def choose(self, specifier: str, fits: Callable[[Terms], bool]) -> Offer:
        """The pack that `NAME:VERSION` or `NAME` stands for: without a version, the newest that fits, and the newest where none does.

        Args:
            fits: whether a pack of these terms can run here.

        Raises:
            VerificationError: it was revoked. UsageError: there is none.
        """
        name, colon, number = specifier.partition(":")
        matching = [offer for offer in reversed(self.offers.get(name, ())) if not colon or number == str(offer.terms.version)]
        if matching:
            return next((offer for offer in matching if fits(offer.terms)), matching[0])
        withdrawn = [entry for entry in self.revoked if entry.name == name and (not colon or number == str(entry.version))]
        if withdrawn:
            why = f": {withdrawn[-1].reason}" if withdrawn[-1].reason else ""
            next_step = "install another version, or ask the publisher"
            raise VerificationError(
                mismatch(f"adapter {specifier!r}", "a pack on offer", f"version {withdrawn[-1].version} revoked{why}", next_step)
            )
        on_offer = ", ".join(offer.label for offers in self.offers.values() for offer in offers) or "nothing"
        raise UsageError(mismatch("adapter", f"one of {on_offer}", repr(specifier), "choose one of these or fetch again"))


def release_key(release: str) -> tuple[int, ...]:
    """A release as numbers to compare; what follows them (`rc1`, `.dev2`) does not count, and zeros at the end neither."""
    digits = re.match(r"\d+(\.\d+)*", release)
    numbers = [int(part) for part in digits[0].split(".")] if digits else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def target_path(name: str, version: int) -> str:
    """The name of a pack's target."""
    return f"{name}/{version}{PACK_SUFFIX}"


def revocations(targets: Targets) -> tuple[Revocation, ...]:
    """The signed list of withdrawn packs.

    Raises:
        VerificationError: it is no such list.
    """
    try:
        return msgspec.convert(targets.unrecognized_fields.get(REVOKED, []), tuple[Revocation, ...])
    except msgspec.ValidationError as error:
        raise VerificationError(_malformed(REVOKED, "a list of revoked packs", error)) from error


def read_catalogue(targets: Targets) -> Catalogue:
    """The offers of verified targets metadata.

    Raises:
        VerificationError: a target is not a pack of quad's, or its path is another than its name and version make.
    """
    withdrawn = revocations(targets)
    withdrawn_digests = {entry.sha256 for entry in withdrawn}
    offers = [_offer(path, target) for path, target in targets.targets.items()]
    return Catalogue(_by_name(offer for offer in offers if offer.sha256 not in withdrawn_digests), withdrawn)


def _by_name(offers: Iterable[Offer]) -> dict[str, tuple[Offer, ...]]:
    by_name: dict[str, list[Offer]] = {}
    for offer in sorted(offers, key=lambda offer: (offer.terms.name, offer.terms.version)):
        by_name.setdefault(offer.terms.name, []).append(offer)
    return {name: tuple(versions) for name, versions in by_name.items()}


def _offer(path: str, target: TargetFile) -> Offer:
    try:
        terms = msgspec.convert(target.custom, Terms)
        sha256 = msgspec.convert(target.hashes.get("sha256"), Sha256)
    except msgspec.ValidationError as error:
        raise VerificationError(_malformed(path, "a name, digests and a version in their signed form (path escape)", error)) from error
    if path != target_path(terms.name, terms.version):
        next_step = "nothing was fetched, ask the publisher"
        raise VerificationError(
            mismatch("targets.json", f"the path {target_path(terms.name, terms.version)}", f"{path!r} (path escape)", next_step)
        )
    if target.length > LARGEST_PACK:
        raise VerificationError(_malformed(path, f"at most {LARGEST_PACK} bytes", target.length))
    return Offer(terms, sha256, target.length)


def _malformed(path: str, expected: str, actual: Any) -> str:
    return mismatch(f"targets.json, {path!r}", expected, f"something else: {actual}", "nothing was fetched, ask the publisher")
