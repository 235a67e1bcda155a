"""Bytes from a source: metadata for tuf, bounded and kept in mind for a message, and packs, resumed where they were cut off."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

from tuf.api.exceptions import DownloadError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from quad.core.digests import file_digest
from quad.core.errors import VerificationError, mismatch
from quad.core.storage.files import writing_to
from quad.core.storage.reading import file_status
from quad.delivery.device.attack_messages import download_error
from quad.delivery.offer import Offer
from quad.delivery.source import Source

_LOG = logging.getLogger(__name__)

OnProgress = Callable[[int], None]


@final
class MetadataFetcher(FetcherInterface):
    """tuf's way to the source.

    Args:
        source: `path` and `data` are what was last asked of it, and what came.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.path, self.data = source, "", b""

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError("metadata comes by download_bytes")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        self.path, self.data = url, b""
        for chunk in self.source.open(url, 0, max_length).chunks:
            self.data += chunk
            if len(self.data) > max_length:
                raise DownloadLengthMismatchError(f"more than {max_length} bytes")
        return self.data


def download_pack(source: Source, offer: Offer, partial: Path, on_progress: OnProgress = lambda _: None) -> None:
    """Bring a pack's bytes to a file, going on where an earlier try stopped; when this returns they are verified and on the disk.

    Args:
        partial: the file; what it holds of another try is used, and believed only when the whole has the right digest.
        on_progress: called with the bytes that are there so far.

    Raises:
        VerificationError: endless or slow data, or not the pack that was signed. BackendError: not to be reached, or a full disk.
    """
    status = file_status(partial)
    resumed_at = 0 if status is None else status.st_size
    try:
        _receive(source, offer, partial, on_progress)
    except DownloadError as error:
        if isinstance(error, DownloadLengthMismatchError):
            partial.unlink(missing_ok=True)
        raise download_error(error, f"{source.name}/{offer.location}") from error
    actual = file_digest(partial)
    if actual == offer.sha256:
        _LOG.info("pack %s: fetched and verified, %d bytes", offer.label, offer.size_bytes)
        return
    _LOG.warning("pack %s: thrown away, digest %s in place of %s", offer.label, actual[:8], offer.sha256[:8])
    with writing_to(partial):
        partial.unlink()
    if resumed_at:  # what was there before may have been the wrong part of it
        return download_pack(source, offer, partial, on_progress)
    next_step = "it was thrown away; try another mirror or ask the publisher"
    raise VerificationError(
        mismatch(f"{source.name}/{offer.location}", f"digest {offer.sha256[:8]}", f"{actual[:8]} (tampered pack)", next_step)
    )


def _receive(source: Source, offer: Offer, partial: Path, on_progress: OnProgress) -> None:
    with writing_to(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        stream = partial.open("ab")
    with writing_to(partial), stream:
        have = stream.tell()
        if have > offer.size_bytes:
            have = 0
        if have < offer.size_bytes:
            answer = source.open(offer.location, have, offer.size_bytes - have)
            have = answer.start
            stream.truncate(have)
            if have:
                _LOG.info("pack %s: resumed at %d of %d bytes", offer.label, have, offer.size_bytes)
            for chunk in answer.chunks:
                have += len(chunk)
                if have > offer.size_bytes:
                    raise DownloadLengthMismatchError(f"more than {offer.size_bytes} bytes")
                stream.write(chunk)
                on_progress(have)
        stream.flush()
        os.fsync(stream.fileno())
    if have < offer.size_bytes:
        raise DownloadError(f"{have} of {offer.size_bytes} bytes, the rest is fetched next time")
