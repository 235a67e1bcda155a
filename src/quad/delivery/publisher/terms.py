"""The terms that a publisher sets devices that run its packs."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.storage.pack import Pack
from quad.delivery.offer import Release, Terms, release_key


@dataclass(frozen=True)
class PublishTerms:
    """Terms that the publisher sets, beside those that a pack itself states.

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
        releases = f"{self.at_least}..{self.below}"
        try:
            first, before = (release_key(msgspec.convert(release, Release)) for release in (self.at_least, self.below))
        except msgspec.ValidationError as error:
            raise UsageError(mismatch("--runtime", "releases", releases, "write them as 0.1 or 0.2.1")) from error
        if first >= before:
            raise UsageError(mismatch("--runtime", "a range of releases", releases, "write the lower one first"))

    def of_pack(self, pack: Pack, version: int) -> Terms:
        """The terms of one pack.

        Raises:
            InputError: the pack does not say for which bundle it is.
        """
        manifest = pack.manifest
        fields: dict[str, object] = {
            "name": manifest.name,
            "version": version,
            "slots": manifest.parents.get("slots"),
            "profile": manifest.parents.get("profile"),
            "at_least": self.at_least,
            "below": self.below,
            "min_ram_bytes": manifest.size_bytes if self.min_ram_bytes is None else self.min_ram_bytes,
            "tasks": sorted(manifest.tasks),
        }
        if "graph" in manifest.parents:
            fields["graph"] = manifest.parents["graph"]
        try:
            return msgspec.convert(fields, Terms)
        except msgspec.ValidationError as error:
            raise InputError(mismatch(f"pack {manifest.name!r}", "digests of its bundle", str(error), "pack it with quad adapt")) from error
