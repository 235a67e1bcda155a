"""Bundles that were damaged, and how a bundle is sealed again by someone who means no good."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from quad.core.digests import canonical_json, digest, file_digest
from quad.core.errors import InputError, VerificationError
from quad.core.manifest import BundleManifest, FileEntry
from tests.hostile.raw import Written, changed, put
from tests.hostile.refusal import Case

FILES = (
    "bundle.json",
    "slots.json",
    "profile.json",
    "tokenizer/tokenizer.json",
    "unet/model.onnx",
    "text_encoder/model.onnx",
    "vae_encoder/model.onnx",
    "vae_decoder/model.onnx",
    "adapters/sketch/adapter.json",
    "adapters/sketch/adapter.safetensors",
)
_DEEP = b'{"format_version":' * 60_000 + b"1" + b"}" * 60_000
Change = Callable[[Path], object]


def flipped(name: str, share: float) -> Written:
    """One bit of a file turned."""

    def change(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[int(share * (len(data) - 1))] ^= 4
        (root / name).write_bytes(data)

    return changed(change)


def sealed(root: Path, **changes: Any) -> None:
    """Fields of `bundle.json` changed, one level deep, and its seal renewed; written as text, so that no type stands in the way."""
    said = json.loads((root / "bundle.json").read_bytes())
    for name, value in changes.items():
        said[name] = {**said[name], **value} if isinstance(value, dict) and isinstance(said.get(name), dict) else value
    said["sha256"] = ""
    with suppress(msgspec.ValidationError):  # what can be a manifest gets all of its fields, so that its seal holds
        said = msgspec.to_builtins(msgspec.convert(said, BundleManifest))
    (root / "bundle.json").write_bytes(canonical_json({**said, "sha256": digest(said)}))


def resealed(**changes: Any) -> Written:
    return changed(lambda root: sealed(root, **changes))


def signed(name: str, change: Callable[[Any], Any]) -> Written:
    """A JSON file of the bundle changed, and every digest of it renewed, as the bundle's own publisher could."""

    def write(root: Path) -> Path:
        value = change(json.loads((root / name).read_bytes()))
        (root / name).write_bytes(canonical_json(value))
        entry = msgspec.to_builtins(FileEntry(file_digest(root / name), (root / name).stat().st_size))
        parents = {Path(name).stem: digest(value)} if name in ("slots.json", "profile.json") else {}
        sealed(root, files={name: entry}, parents=parents)
        return root

    return write


def _unlink_and(make: Callable[[Path], object], name: str) -> Written:
    def change(root: Path) -> None:
        (root / name).rename(root.parent / "outside")
        make(root / name)

    return changed(change)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


DAMAGED = [
    *(
        Case(f"a bit of {name} turned, at {share:g}", flipped(name, share), VerificationError, "expected")
        for name in FILES
        for share in (0.1, 0.9)
    ),
    *(Case(f"{name} emptied", put(name, b""), VerificationError, "expected") for name in FILES),
    *(
        Case(
            f"{name} taken away",
            changed(lambda root, name=name: (root / name).unlink()),
            VerificationError if name != "bundle.json" else InputError,
            "expected",
        )
        for name in FILES
    ),
    *(
        Case(f"{name} made a pipe", _unlink_and(os.mkfifo, name), VerificationError if name != "bundle.json" else InputError, "expected")
        for name in FILES[:6]
    ),
    Case(
        "a graph linked out",
        _unlink_and(lambda file: file.symlink_to(file.parents[2] / "outside"), "unet/model.onnx"),
        VerificationError,
        "link out of the directory",
    ),
    Case(
        "a graph that is a device",
        _unlink_and(lambda file: file.symlink_to("/dev/zero"), "unet/model.onnx"),
        VerificationError,
        "link out of the directory",
    ),
    Case(
        "adapters of another name",
        changed(lambda root: (root / "adapters/sketch").rename(root / "adapters/ink")),
        VerificationError,
        "expected",
    ),
]

_MANIFESTS: Mapping[str, bytes] = {
    "of no JSON": b"bundle",
    "of a list": b"[1]",
    "of null": b"null",
    "of deep lists": b"[" * 100_000,
    "of deep objects": _DEEP,
    "of bytes": b"\xff\xfe\x00",
    "of version 2": _json({"format_version": 2}),
    "of version 1 in words": _json({"format_version": "1"}),
    "of a version of 5,000 digits": b'{"format_version": 1' + b"0" * 5000 + b"}",
    "of a version alone": _json({"format_version": 1}),
    "of a version that is not a number": b'{"format_version": NaN}',
    "of deep objects behind a version": b'{"format_version": 1, "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
}
MANIFESTS = [
    Case(f"bundle.json {name}", put("bundle.json", text), VerificationError, "bundle.json: expected") for name, text in _MANIFESTS.items()
]
