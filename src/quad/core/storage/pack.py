"""A pack: one adapter in one file, `NAME.qpack`.

A pack is a safetensors file. Its header's metadata holds `quad_adapter`, the text of `adapter.json`, and `quad_digest`,
the SHA-256 of that text. The manifest's `sha256` is `content_digest` of the tensors, so that every byte is covered:
the text by one digest, names, types, shapes and data by the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from quad.core.digests import canonical_json
from quad.core.errors import VerificationError, mismatch
from quad.core.manifest import FORMAT_VERSION, AdapterManifest
from quad.core.storage.files import write_bytes
from quad.core.storage.header import with_sorted_metadata
from quad.core.storage.tensor_file import copy_tensors

PACK_SUFFIX = ".qpack"
MANIFEST_KEY = "quad_adapter"
DIGEST_KEY = "quad_digest"


@dataclass(frozen=True)
class Pack:
    """An adapter as read from disk, read-only: graph input name -> integers (or float32), and what it claims to be."""

    manifest: AdapterManifest
    tensors: dict[str, NDArray[Any]]


def parse_adapter_manifest(where: str, text: bytes) -> AdapterManifest:
    """`adapter.json` as a struct.

    Raises:
        VerificationError: it is no manifest, or one of another format version.
    """
    try:
        version = json.loads(text).get("format_version")
        if version != FORMAT_VERSION:
            next_step = "update quad or pack the adapter again"
            raise VerificationError(mismatch(where, f"format version {FORMAT_VERSION}", version, next_step))
        return msgspec.json.decode(text, type=AdapterManifest)
    except (ValueError, AttributeError, RecursionError, msgspec.MsgspecError) as error:
        raise VerificationError(mismatch(where, "an adapter manifest", f"something else ({error})", "fetch it again")) from error


def content_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in order of their names."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        h.update(canonical_json([name, array.dtype.str, list(array.shape)]))
        h.update(array.ravel().data)
    return h.hexdigest()


def write_pack(path: Path, manifest: AdapterManifest, tensors: Mapping[str, NDArray[Any]]) -> AdapterManifest:
    """Write one adapter as a pack, whole or not at all.

    Args:
        path: the new file, by convention `NAME.qpack`.
        manifest: its `sha256` and `size_bytes` are set here to those of the tensors.
        tensors: graph input name -> array in the slot's dtype, of the adapter's own rank (`padding.trim`).

    Returns:
        The manifest as written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    size = sum(array.nbytes for array in arrays.values())
    written = msgspec.structs.replace(manifest, sha256=content_digest(arrays), size_bytes=size)
    text = canonical_json(written)
    metadata = {MANIFEST_KEY: text.decode(), DIGEST_KEY: hashlib.sha256(text).hexdigest()}
    write_bytes(path, with_sorted_metadata(save_safetensors(arrays, metadata)))
    return written


def read_pack(path: Path) -> Pack:
    """Read a pack and check both of its digests.

    Raises:
        InputError: it cannot be read, or was changed meanwhile. VerificationError: it is no pack, or a byte of it was changed.
    """
    file = copy_tensors(path)
    manifest = pack_manifest(str(path), file.metadata)
    check_digest(str(path), content_digest(file.tensors), manifest.sha256)
    return Pack(manifest, file.tensors)


def pack_manifest(where: str, metadata: Mapping[str, str]) -> AdapterManifest:
    """The manifest in a pack's metadata, its digest checked; that of its tensors is not.

    Raises:
        VerificationError: it is no pack, or its words were changed.
    """
    if MANIFEST_KEY not in metadata:
        next_step = "turn a LoRA file into a pack with quad adapt"
        raise VerificationError(mismatch(where, f"a pack with {MANIFEST_KEY} in its metadata", "a plain safetensors file", next_step))
    text = metadata[MANIFEST_KEY].encode()
    check_digest(where, hashlib.sha256(text).hexdigest(), metadata.get(DIGEST_KEY, "none"))
    return parse_adapter_manifest(where, text)


def check_digest(where: str, actual: str, expected: str) -> None:
    """Raises:
    VerificationError: they differ.
    """
    if actual != expected:
        raise VerificationError(mismatch(where, f"digest {expected[:8]}", actual[:8], "the file was changed or damaged, fetch it again"))
