"""One machine's copy of a repository, compared with what is served before anything is signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Timestamp

from quad.core.errors import InputError, mismatch
from quad.core.storage.files import directory_lock
from quad.delivery.publisher.joining import Joined, join
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.served import Served, read_served, remember_address, remembered_address
from quad.delivery.publisher.signed import LIFE_DAYS, ONLINE, State, now, put, read_state
from quad.delivery.source import open_source


def _ignore(_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, kw_only=True)
class ServedComparison:
    """How a copy is compared with what is served.

    Args:
        url: where that is; None for where it was the last time.
        wanted: False where a key was stolen, so that what is served is not to be believed, or the server is gone.
        on_note: called with a line for the publisher.
    """

    url: str | None = None
    wanted: bool = True
    on_note: Callable[[str], None] = _ignore


@dataclass(frozen=True, kw_only=True)
class WorkingCopy:
    """The directory of a repository, and the keys at hand."""

    folder: Path
    keys: Keys
    comparison: ServedComparison

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One publisher at a time on this copy.

        Raises:
            InputError: another one is at work.
        """
        in_use = InputError(mismatch(str(self.folder), "no other publisher at work on it", "one", "wait for it"))
        with directory_lock(self.folder, in_use):
            yield

    def open(self, lost: Sequence[str] = ()) -> tuple[Joined, dict[str, list[CryptoSigner]]]:
        """The state to sign the next one on top of, and signers for it.

        Args:
            lost: roles whose keys may be missing.

        Raises:
            RefusedError: another machine has published what this copy lacks, and this copy what was not served.
            UsageError: a key that is needed is missing.
        """
        joined = self.joined()
        return joined, {role: self.keys.signers(role, joined.state.root, 0 if role in lost else None) for role in ONLINE}

    def joined(self) -> Joined:
        """The published state as this machine has it, brought up to what is served.

        Raises:
            RefusedError: as `open`.
        """
        ours = read_state(self.folder)
        self._compare_clock(ours)
        served = self.served(ours.root)
        if served is None:
            return Joined(state=ours)
        names = {role: "timestamp.json" if role == "timestamp" else f"{served.state.payload(role).version}.{role}.json" for role in ONLINE}
        joined = join(ours, served.state, served.state.root if served.roots else ours.root, served.where)
        if joined.news:
            self.comparison.on_note(f"taken over from {served.where}: {', '.join(joined.news)}")
        self.write_roots(served)
        if joined.state.files is served.state.files:
            for role, name in names.items():
                put(self.folder, name, served.state.files[role])
        return joined

    def _compare_clock(self, state: State) -> None:
        """Say where this clock, or that of the last signing, is wrong: devices refuse what has expired."""
        signed_at, here = state.timestamp.expires - timedelta(days=LIFE_DAYS[Timestamp.type]), now()
        if signed_at > here + timedelta(days=1):
            dates = f"the clock here says {here:%Y-%m-%d}, that of the last signing said {signed_at:%Y-%m-%d}"
            self.comparison.on_note(f"{dates}: set the one that is wrong")

    def write_roots(self, served: Served) -> None:
        """Take over newer roots: each is signed by those before it."""
        for number, data in served.roots.items():
            put(self.folder, f"{number}.root.json", data)

    def served(self, root: Root) -> Served | None:
        """The copy that devices see; None where there is none, or it is not asked for.

        Raises:
            UsageError: no address. BackendError: not to be reached. VerificationError, RefusedError: as `read_served`.
        """
        if not self.comparison.wanted:
            return None
        remembered = remembered_address(self.folder) if self.comparison.url is None else None
        url = self.comparison.url or remembered
        if url is None:
            self.comparison.on_note("not compared with what devices see: say with --url where the repository is served")
            return None
        source = open_source(url)
        served = read_served(self.folder, root, source)
        if url != remembered:
            remember_address(self.folder, source)
        if served is None:
            self.comparison.on_note(f"nothing is served yet at {source.name}")
        return served
