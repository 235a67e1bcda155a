"""Where a device reads its repository, and the events and records that it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from quad.delivery.timeouts import Timeouts

Progress = Callable[[str, int, int], None]  # label, bytes there, bytes in all


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that runs another version than before, and why; `now` is None where it does not run any more."""

    name: str
    was: int
    now: int | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a device comes to its repository; what is not said is what it was before.

    Args:
        url: of the repository, or a directory.
        root: the first root's bytes, that came by another way.
        redirects: origins beside its own that the repository may redirect to.
    """

    url: str | None = None
    root: bytes | None = None
    redirects: tuple[str, ...] | None = None
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - it is frozen


def _ignore(*_: object) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Callbacks:
    """Called when something happens.

    Args:
        on_change: of an adapter that had to step back, at once: what comes after may still fail.
        on_progress: while a pack comes in.
    """

    on_change: Callable[[Change], None] = _ignore
    on_progress: Progress = _ignore


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an install or a rollback.

    Args:
        version: the one that runs now. previous: what a rollback would return to.
        switched: False where it ran already.
    """

    name: str
    version: int
    previous: int | None
    switched: bool


class AdapterListing(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter by name, as far as the device knows.

    Args:
        installed, previous: the version that runs, and the one that a rollback returns to.
        offered: versions on offer, and why each cannot run here; empty where it can.
        revoked: versions that were withdrawn, and why.
    """

    name: str
    installed: int | None
    previous: int | None
    offered: dict[int, str]
    revoked: dict[int, str]
