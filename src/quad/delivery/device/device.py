"""The device's side: read what is on offer, refuse what does not fit before it is fetched, install whole or not at all, go back.

What is installed runs on without the network and past every expiry; a new version needs metadata that is fresh.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from quad.core.digests import file_digest
from quad.core.errors import CompatibilityError, UsageError, VerificationError, mismatch, one_line
from quad.core.storage.files import once_done
from quad.core.storage.install_pointers import Installed, Version, is_whole, pack_path, write_pointer
from quad.core.storage.pack import Pack, read_pack
from quad.core.storage.reading import is_file
from quad.delivery.device.download import download_pack
from quad.delivery.device.events import Access, AdapterListing, Callbacks, Installation
from quad.delivery.device.fit import Platform, check_fit, check_manifest
from quad.delivery.device.refresh import refresh
from quad.delivery.device.store import Store
from quad.delivery.device.trust import first_trust, read_trust, same_anchor, write_trust
from quad.delivery.offer import Catalogue, Offer, Terms
from quad.delivery.source import Source, open_source

_LOG = logging.getLogger(__name__)

Smoke = Callable[[Path], None]


@final
class Device:
    """A store of installed adapters beside one bundle.

    Args:
        folder: the store.
        platform: the bundle and the machine that packs must fit.
        access: where they come from.
        callbacks: for adapters that step back, and bytes that come in.
    """

    def __init__(self, folder: Path, platform: Platform, *, access: Access | None = None, callbacks: Callbacks | None = None) -> None:
        self._store, self._platform = Store(folder), platform
        self._access, self._callbacks = access or Access(), callbacks or Callbacks()

    def clean(self) -> None:
        """Recover what a killed process left; every start does it first.

        Raises:
            InputError: an installer is at work.
        """
        with self._store.locked():
            self._recover()

    def fetch(self, specifiers: Sequence[str] = ()) -> list[Offer]:
        """Read what is on offer, and bring packs here, verified, to be installed later.

        Args:
            specifiers: `NAME` (the newest version that fits) or `NAME:VERSION` each; none for the metadata alone.

        Returns:
            The packs that are here now.
        """
        with self._refreshed() as (source, catalogue):
            offers = [self._choose(catalogue, specifier) for specifier in specifiers]
            for offer in offers:
                self._fetch(source, offer)
        return offers

    def install(self, specifier: str, smoke: Smoke) -> Installation:
        """Make a pack the one that runs: fetched if need be, verified, tried, and then switched to.

        Args:
            specifier: `NAME` (the newest version that fits) or `NAME:VERSION`.
            smoke: tries the pack and raises when it does not work.

        Raises:
            VerificationError: an attack, or a revoked pack. CompatibilityError: it does not fit; nothing of it was fetched.
            BackendError: no network, or a full disk. In every case the adapter runs as before.
        """
        with self._refreshed() as (source, catalogue):
            offer = self._choose(catalogue, specifier)
            name = offer.terms.name
            current = self._current(name)
            runs = current is not None and current.current.sha256 == offer.sha256
            if current is not None and runs and self._is_sound(offer):
                _LOG.info("adapter %s: runs already", offer.label)
                return _done(current, False)
            self._fetch(source, offer)
            self._promote(offer)
            try:
                smoke(pack_path(self._store.folder, offer.sha256))
            except BaseException:
                _LOG.warning("pack %s: its trial failed, it is not installed", offer.label)
                self._recover()
                raise
            before = (current.previous if runs else current.current) if current else None
            pointer = Installed(name, offer.version, before)
            write_pointer(self._store.folder, pointer)
            _LOG.info("adapter %s: installed, version %s before", offer.label, before.version if before else "none")
            with once_done(f"adapter {name}: version {offer.terms.version} runs now"):
                self._recover()
        return _done(pointer, True)

    def rollback(self, name: str, smoke: Smoke) -> Installation:
        """Run the previous version again; a second rollback returns. It needs no network.

        Raises:
            UsageError: there is no such adapter, or no previous version. VerificationError: it was damaged.
        """
        with self._store.locked():
            self._recover()
            pointer = self._current(name)
            if pointer is None or pointer.previous is None:
                state = "not installed" if pointer is None else "none"
                raise UsageError(mismatch(f"adapter {name!r}", "a previous version", state, "see quad list"))
            path = pack_path(self._store.folder, pointer.previous.sha256)
            _same_digest(path, pointer.previous)
            smoke(path)
            back = Installed(name, pointer.previous, pointer.current)
            write_pointer(self._store.folder, back)
            _LOG.info("adapter %s: rolled back to version %d from %d", name, back.current.version, pointer.current.version)
        return _done(back, True)

    def listing(self) -> list[AdapterListing]:
        """Every adapter that is installed, or was on offer when the repository was read last. It changes nothing, and needs no network."""
        catalogue, pointers = self._last_catalogue(), self._store.pointers()
        names = sorted({*pointers, *catalogue.offers, *(entry.name for entry in catalogue.revoked)})
        return [self._listed(name, pointers.get(name), catalogue) for name in names]

    def _listed(self, name: str, pointer: Installed | None, catalogue: Catalogue) -> AdapterListing:
        offered = {offer.terms.version: _fit(offer.terms, self._platform) for offer in catalogue.offers.get(name, ())}
        revoked = {entry.version: entry.reason for entry in catalogue.revoked if entry.name == name}
        previous = pointer.previous.version if pointer and pointer.previous else None
        runs = pointer is not None and is_whole(self._store.folder, pointer.current)
        return AdapterListing(
            name=name, installed=pointer.current.version if pointer and runs else None, previous=previous, offered=offered, revoked=revoked
        )

    @contextmanager
    def _refreshed(self) -> Iterator[tuple[Source, Catalogue]]:
        """Alone in the store, with metadata that is fresh, and a store that knows of it."""
        with self._store.locked():
            self._recover()
            trust, access = read_trust(self._store.folder), self._access
            if access.root is not None:
                trust = same_anchor(trust, access.root) if trust else first_trust(access.root)
            if trust is None:
                next_step = "give --root 1.root.json, as the publisher gave it to you"
                raise UsageError(mismatch(str(self._store.folder), "a root to trust", "none", next_step))
            url = access.url or trust.url
            if not url:
                raise UsageError(mismatch("--url", "where the repository is", "nothing", "it is remembered after the first time"))
            before = trust.redirects if url.rstrip("/") == trust.url else ()
            source = open_source(url, access.timeouts, before if access.redirects is None else access.redirects)
            with self._store.scratch() as scratch:
                trust = refresh(trust, source, scratch, lambda verified: write_trust(self._store.folder, verified))
            self._recover()
            yield source, trust.catalogue()

    def _recover(self) -> None:
        for change in self._store.recover(self._last_catalogue()):
            outcome = "disabled" if change.now is None else f"version {change.now} runs again"
            _LOG.warning("adapter %s:%d: stepped back, %s; %s", change.name, change.was, one_line(change.why), outcome)
            self._callbacks.on_change(change)

    def _last_catalogue(self) -> Catalogue:
        trust = read_trust(self._store.folder)
        return Catalogue({}, ()) if trust is None else trust.catalogue()

    def _current(self, name: str) -> Installed | None:
        return self._store.pointers().get(name)

    def _choose(self, catalogue: Catalogue, specifier: str) -> Offer:
        offer = catalogue.choose(specifier, lambda terms: not _fit(terms, self._platform))
        try:
            check_fit(offer.terms, self._platform)
        except CompatibilityError as error:
            _LOG.info("pack %s: does not fit, %s", offer.label, error)
            raise
        _LOG.debug("pack %s: chosen", offer.label)
        return offer

    def _fetch(self, source: Source, offer: Offer) -> None:
        """A pack's verified bytes in the store; what is there already is not fetched again."""
        if is_file(self._store.fetched(offer)) or self._is_sound(offer):
            return
        partial = self._store.partial(offer)
        download_pack(source, offer, partial, lambda n_bytes: self._callbacks.on_progress(offer.label, n_bytes, offer.size_bytes))
        self._store.move(partial, self._store.fetched(offer))

    def _is_sound(self, offer: Offer) -> bool:
        """Whether an installed pack still has every byte that was signed."""
        return is_whole(self._store.folder, offer.version) and file_digest(pack_path(self._store.folder, offer.sha256)) == offer.sha256

    def _promote(self, offer: Offer) -> None:
        """Among the packs that may be pointed to: whole, and what its signed terms say."""
        fetched, place = self._store.fetched(offer), pack_path(self._store.folder, offer.sha256)
        waits = fetched if is_file(fetched) else place
        try:
            _same_digest(waits, offer.version)
            pack: Pack = read_pack(waits)
            check_manifest(f"{offer.label} in {waits}", pack.manifest, offer.terms)
        except VerificationError:
            fetched.unlink(missing_ok=True)  # never the other one: an adapter may run from it
            raise
        if waits is fetched:
            self._store.move(fetched, place)


def _same_digest(path: Path, version: Version) -> None:
    actual = file_digest(path)
    if actual != version.sha256:
        next_step = "it was damaged on this disk, install it again"
        raise VerificationError(mismatch(str(path), f"digest {version.sha256[:8]}", actual[:8], next_step))


def _fit(terms: Terms, platform: Platform) -> str:
    """Why a pack cannot run here; empty where it can."""
    try:
        check_fit(terms, platform)
    except CompatibilityError as error:
        return str(error)
    return ""


def _done(pointer: Installed, switched: bool) -> Installation:
    previous = pointer.previous.version if pointer.previous else None
    return Installation(name=pointer.name, version=pointer.current.version, previous=previous, switched=switched)
