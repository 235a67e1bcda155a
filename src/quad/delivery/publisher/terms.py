"""What a publisher wants of devices that run its packs, and the terms that come of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.pack import Pack
from quad.delivery.offer import Release, Terms, release_key


@dataclass(frozen=True)
class Wishes:
    """What a publisher says of packs that the packs do not say themselves.

    Args:
        at_least, below: releases of quad that can run them, the second one no more.
        min_ram_bytes: memory a device must have in all; None for what their tensors take.
    """

    at_least: str
    below: str
    min_ram_bytes: int | None = None

    def __post_init__(self) -> None:
        """Compare the releases.

        Raises:
            UsageError: one is no release, or they are no range.
        """
        told = f"{self.at_least}..{self.below}"
        try:
            first, before = (release_key(msgspec.convert(release, Release)) for release in (self.at_least, self.below))
        except msgspec.ValidationError as error:
            raise UsageError(mismatch("--runtime", "releases", told, "write them as 0.1 or 0.2.1")) from error
        if first >= before:
            raise UsageError(mismatch("--runtime", "a range of releases", told, "write the lower one first"))

    def terms(self, pack: Pack, version: int) -> Terms:
        """The terms of one pack.

        Raises:
            InputError: the pack does not say for which bundle it is.
        """
        said = pack.manifest
        fields: dict[str, object] = {
            "name": said.name,
            "version": version,
            "slots": said.parents.get("slots"),
            "profile": said.parents.get("profile"),
            "at_least": self.at_least,
            "below": self.below,
            "min_ram_bytes": said.size_bytes if self.min_ram_bytes is None else self.min_ram_bytes,
            "tasks": sorted(said.tasks),
        }
        if "graph" in said.parents:
            fields["graph"] = said.parents["graph"]
        try:
            return msgspec.convert(fields, Terms)
        except msgspec.ValidationError as error:
            raise InputError(mismatch(f"pack {said.name!r}", "digests of its bundle", str(error), "pack it with quad adapt")) from error
