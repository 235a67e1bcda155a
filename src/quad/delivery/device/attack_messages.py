"""An error of tuf as one line: where, expected, found and the kind of attack it looks like, what to do.

| seen | kind |
|---|---|
| a version older than one that was trusted | rollback |
| the newest there is has expired | freeze |
| a version far ahead of the last | fast-forward |
| files of different moments | mix-and-match |
| more bytes than a file may have | endless data |
| bytes that come too slowly | slow data |
| no signature by a key of the role | wrong keys |
| some, but too few | below threshold |
| a key of the role named, and a signature that is not its own; or no metadata at all | tampered metadata |
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root

from quad.core.errors import BackendError, QuadError, VerificationError, mismatch

_LOG = logging.getLogger(__name__)

THEN = "nothing was changed; try another mirror or ask the publisher"
_CLOCK_THEN = "nothing was changed; set the clock where it is wrong, else try another mirror or ask the publisher"
# tuf's sentences about versions: which attack each speaks of. The root chain goes up by one; any other step is told apart by its side.
_VERSIONS = (
    (r"New timestamp version (?P<found>\d+) must be >= (?P<least>\d+)", "rollback"),
    (r"New snapshot version must be >= (?P<least>\d+), got version (?P<found>\d+)", "rollback"),
    (r"Expected \S+\.json version (?P<found>\d+), got (?P<least>\d+)", "rollback"),
    (r"Expected snapshot version (?P<least>\d+), got (?P<found>\d+)", "mix-and-match"),
    (r"Expected targets v(?P<least>\d+), got v(?P<found>\d+)", "mix-and-match"),
    (r"Expected root version (?P<least>\d+) instead got version (?P<found>\d+)", ""),
)
_MISSING = (403, 404, 410)


def attack_error(where: str, expected: str, actual: str, kind: str, *, then: str = THEN) -> VerificationError:
    """The line of one attack; where it comes from is not logged, an address may hold a password."""
    _LOG.warning("refused as %s: expected %s, found %s", kind, expected, actual)
    return VerificationError(mismatch(where, expected, f"{actual} ({kind})", then))


def download_error(error: DownloadError, where: str) -> QuadError:
    """A download that did not end well."""
    if isinstance(error, DownloadLengthMismatchError):
        return attack_error(where, "a file that ends", str(error), "endless data")
    if isinstance(error, SlowRetrievalError):
        return attack_error(where, "data at a tolerable rate", str(error), "slow data")
    if isinstance(error, DownloadHTTPError) and error.status_code in _MISSING:
        return BackendError(mismatch(where, "a file", "none", "the repository is not whole, or the address is wrong"))
    return BackendError(mismatch(where, "an answer", str(error), "check the address and the network; what is installed runs on"))


def metadata_error(error: RepositoryError, where: str, data: bytes, root: Root) -> QuadError:
    """Metadata that tuf does not take.

    Args:
        data: what came last.
        root: what is trusted, to tell a wrong key from a wrong signature.
    """
    text = str(error)
    folder = where.rpartition("/")[0]
    if isinstance(error, ExpiredMetadataError):
        role = next((role for role in ("root", "timestamp", "snapshot", "targets") if role in text), "metadata")
        return _of_expiry(f"{folder}/{role}.json", _expiry(role, data, root))
    if isinstance(error, BadVersionNumberError):
        return _of_version(text, where)
    if isinstance(error, LengthOrHashMismatchError):
        return attack_error(where, "the file that the metadata before it names", "another one", "mix-and-match")
    if isinstance(error, UnsignedMetadataError):
        return _of_signatures(text, where, data, root)
    return attack_error(where, "signed metadata", f"something else: {text}", "tampered metadata")


def _of_expiry(where: str, at: datetime | None) -> QuadError:
    """Expired metadata, or a clock that is ahead: both dates say which."""
    when = f", on {at:%Y-%m-%d %H:%M} UTC" if at else ""
    actual = f"the newest on offer has{when}, and the clock here says {datetime.now(UTC):%Y-%m-%d %H:%M}"
    return attack_error(where, "metadata that has not expired", actual, "freeze", then=_CLOCK_THEN)


def _expiry(role: str, data: bytes, root: Root) -> datetime | None:
    """When the metadata of a role that came last expired; None where nobody knows."""
    if role == Root.type:
        return root.expires
    try:
        signed = Metadata[Any].from_bytes(data).signed
    except RepositoryError:
        return None
    return signed.expires if signed.type == role else None


def _of_version(text: str, where: str) -> QuadError:
    for pattern, kind in _VERSIONS:
        match = re.search(pattern, text)
        if match is not None:
            least, version = int(match["least"]), int(match["found"])
            attack = kind or ("rollback" if version < least else "fast-forward")
            bound = "version" if attack == "mix-and-match" or not kind else "a version of at least"
            return attack_error(where, f"{bound} {least}", str(version), attack)
    return attack_error(where, "a version that goes on from the last", text, "rollback")


def _of_signatures(text: str, where: str, data: bytes, root: Root) -> QuadError:
    match = re.search(r"(\w+) was signed by (\d+)/(\d+) keys", text)
    role, good, needed = (match[1], int(match[2]), int(match[3])) if match else ("", 0, 1)
    expected = f"{needed} signature{'s' if needed > 1 else ''} of role {role or 'unknown'}"
    if good:
        return attack_error(where, expected, str(good), "below threshold")
    role_keys = set(root.roles[role].keyids) if role in root.roles else set()
    if role_keys & _signing_keys(data):
        return attack_error(where, expected, "signatures of other bytes", "tampered metadata")
    return attack_error(where, expected, "keys that the root does not name", "wrong keys")


def _signing_keys(data: bytes) -> set[str]:
    try:
        signatures: Any = json.loads(data)["signatures"]
        return {str(entry["keyid"]) for entry in signatures}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()
