"""Shared by the verbs of a device: the bundle's facts, the store, where packs come from, and how a new one is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quad.cli.extras import check_delivery
from quad.cli.show import note, progress_bar
from quad.core.errors import InputError, mismatch, one_line
from quad.core.storage.install_pointers import store_beside

if TYPE_CHECKING:
    from quad.delivery.device.device import Device
    from quad.delivery.device.events import AdapterListing, Change

AdapterVersions = Annotated[
    list[str], typer.Argument(metavar="NAME[:VERSION]...", help="Adapters; the newest that fits.", show_default=False)
]
Url = Annotated[
    str | None,
    typer.Option(help="The repository: http(s)://, file:// or a directory; kept after the first time.", metavar="URL", show_default=False),
]
Redirects = Annotated[
    list[str] | None,
    typer.Option(
        "--redirect-to",
        help="An origin beside its own that the repository may redirect to, as https://cdn.example; kept with the address.",
        metavar="ORIGIN",
        show_default=False,
    ),
]
RootFile = Annotated[
    Path | None,
    typer.Option(
        "--root", help="The publisher's 1.root.json, by another way than the network; needed once.", metavar="F", show_default=False
    ),
]
_LARGEST_ROOT = 512_000


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """The options that say where packs come from; None for what was said before."""

    url: str | None = None
    root: Path | None = None
    redirects: list[str] | None = None


@dataclass(frozen=True)
class OpenDevice:
    """A device, its store, and what it has said so far."""

    device: Device
    store: Path
    changes: list[Change] = field(default_factory=list)


@contextmanager
def open_device(verb: str, bundle: Path, store: Path | None, asked: RepositoryOptions = RepositoryOptions()) -> Iterator[OpenDevice]:
    """The device of a bundle, while a bar shows what it fetches."""
    check_delivery(verb)
    from quad import __version__
    from quad.delivery.device.device import Device
    from quad.delivery.device.events import Access, Callbacks
    from quad.delivery.device.fit import Platform, machine_ram_bytes
    from quad.runtime import open_bundle

    opened = open_bundle(bundle, verify=False)
    platform = Platform(bundle=opened.name, parents=opened.manifest.parents, release=__version__, ram_bytes=machine_ram_bytes())
    folder, changes = store if store is not None else store_beside(bundle), []

    def changed(change: Change) -> None:
        changes.append(change)
        consequence = "it is disabled" if change.now is None else f"version {change.now} runs again"
        note(f"adapter {change.name}:{change.was} {change.why}; {consequence}")

    with progress_bar("fetch", 100) as advance:
        redirects = None if asked.redirects is None else tuple(asked.redirects)
        access = Access(url=asked.url, root=_read_root(asked.root), redirects=redirects)
        device = Device(folder, platform, access=access, callbacks=Callbacks(changed, _percent(advance)))
        yield OpenDevice(device, folder, changes)


def _percent(advance: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A bar of 100 steps that follows bytes; it begins anew with each pack, and then stays where it is."""
    shown = 0

    def follow(_: str, received: int, total: int) -> None:
        nonlocal shown
        while shown * total < 100 * received and shown < 100:
            advance()
            shown += 1

    return follow


def _read_root(path: Path | None) -> bytes | None:
    if path is None:
        return None
    if not path.is_file() or path.stat().st_size > _LARGEST_ROOT:
        raise InputError(mismatch("--root", "a root.json", f"none at {path}", "check the path"))
    return path.read_bytes()


def listed_lines(listed: Sequence[AdapterListing]) -> list[str]:
    """One line an adapter."""
    return [f"{entry.name}  {'; '.join(_words(entry))}" for entry in listed]


def _words(entry: AdapterListing) -> list[str]:
    words = [f"version {entry.installed} installed" if entry.installed else "not installed"]
    if entry.previous:
        words.append(f"version {entry.previous} kept")
    words += [
        f"version {version} on offer{f', but {why}' if why else ''}" for version, why in entry.offered.items() if version != entry.installed
    ]
    return words + [f"version {version} revoked{f': {one_line(why)}' if why else ''}" for version, why in entry.revoked.items()]
