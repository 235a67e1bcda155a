"""The platform that packs must fit, and whether one on offer can run there: decided before a byte of the pack is fetched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from quad.core.errors import CompatibilityError, VerificationError, mismatch
from quad.core.manifest import AdapterManifest
from quad.delivery.offer import Terms, release_key

_PARENTS = ("graph", "slots", "profile")


def machine_ram_bytes() -> int:
    """Memory of this machine in all; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The bundle that packs are for, and the device around it.

    Args:
        bundle: its name, for messages.
        parents: its digests: `slots`, `profile`, and `graph` where it has one.
        release: of quad.
        ram_bytes: memory of the device in all; 0 when nobody knows, then nothing is refused for it.
    """

    bundle: str
    parents: Mapping[str, str]
    release: str
    ram_bytes: int = 0


def check_fit(terms: Terms, platform: Platform) -> None:
    """Refuse a pack that cannot run here.

    Raises:
        CompatibilityError: other digests, another release of quad, or too little memory.
    """
    where, next_step = f"adapter {terms.name}:{terms.version}", "nothing was fetched"
    for parent in _PARENTS:
        required, actual = getattr(terms, parent), platform.parents.get(parent)
        if required is msgspec.UNSET or (actual is None and parent == "graph"):
            continue
        if required != actual:
            other = f"{parent} {(actual or 'none')[:8]} of bundle {platform.bundle!r}"
            raise CompatibilityError(
                mismatch(where, f"{parent} {required[:8]}", other, f"{next_step}, it is a pack for another graph: adapt it again")
            )
    if not release_key(terms.at_least) <= release_key(platform.release) < release_key(terms.below):
        expected = f"quad {terms.at_least} or later, before {terms.below}"
        raise CompatibilityError(mismatch(where, expected, platform.release, f"{next_step}, update quad or take another version"))
    if platform.ram_bytes and platform.ram_bytes < terms.min_ram_bytes:
        memory = f"{platform.ram_bytes} bytes of memory"
        raise CompatibilityError(mismatch(where, f"{terms.min_ram_bytes} bytes", memory, f"{next_step}, it needs a larger device"))


def check_manifest(where: str, manifest: AdapterManifest, terms: Terms) -> None:
    """Refuse a pack that is not what its signed terms say.

    Raises:
        VerificationError: another adapter, or one of another graph.
    """
    promised = {parent: getattr(terms, parent) for parent in _PARENTS if getattr(terms, parent) is not msgspec.UNSET}
    for fact, expected, actual in (
        ("adapter", terms.name, manifest.name),
        *((parent, digest, manifest.parents.get(parent, "none")) for parent, digest in promised.items()),
    ):
        if expected != actual:
            shown = expected if fact == "adapter" else expected[:8]
            problem = repr(actual) if fact == "adapter" else f"{actual[:8]} (a pack of another graph)"
            raise VerificationError(mismatch(where, f"{fact} {shown}", problem, "it was not installed, ask the publisher"))
