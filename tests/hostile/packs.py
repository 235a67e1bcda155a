"""Adapters for a bundle that were damaged, forged, or made for another one."""

from __future__ import annotations

import hashlib
import os
import pickle  # noqa: TID251 - what is written here must never be opened
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from quad.core.digests import canonical_json
from quad.core.errors import CompatibilityError, InputError, QuadError, VerificationError
from quad.core.padding import trim
from quad.core.storage.pack import DIGEST_KEY, MANIFEST_KEY, content_digest
from tests.hostile import lora_bytes
from tests.hostile.raw import Written, of_bytes
from tests.hostile.refusal import Case
from tests.runtime.conftest import SLOTS, adapter_manifest, adapter_tensors

NAME = "ink.qpack"
Tensors = dict[str, NDArray[Any]]
_TENSORS = trim(adapter_tensors(9, 2), SLOTS)
_A, _B, _Q = "mid.to_q.lora_A", "mid.to_q.lora_B", "conv_in.lora_A"


def _said(tensors: Tensors, **changes: Any) -> dict[str, Any]:
    written = msgspec.structs.replace(adapter_manifest("ink", 2), sha256=content_digest(tensors), size_bytes=9)
    said: dict[str, Any] = msgspec.to_builtins(written) | changes
    return said


def _packed(tensors: Tensors, text: bytes | None = None, **changes: Any) -> bytes:
    """A pack whose digests are right, whatever it holds."""
    text = canonical_json(_said(tensors, **changes)) if text is None else text
    return save(tensors, {MANIFEST_KEY: text.decode("utf-8", "replace"), DIGEST_KEY: hashlib.sha256(text).hexdigest()})


WHOLE = _packed(_TENSORS)


def _flipped(share: float) -> bytes:
    data = bytearray(WHOLE)
    data[int(share * (len(data) - 1))] ^= 4
    return bytes(data)


def _directory(change: Callable[[Path], object]) -> Written:
    """The adapter as a directory, changed."""

    def write(folder: Path) -> Path:
        data = save(_TENSORS)
        root = folder / "ink"
        root.mkdir()
        (root / "adapter.safetensors").write_bytes(data)
        (root / "adapter.json").write_bytes(canonical_json(_said(_TENSORS, sha256=hashlib.sha256(data).hexdigest())))
        change(root)
        return root

    return write


def _moved(name: str, make: Callable[[Path], object]) -> Written:
    def change(root: Path) -> None:
        (root / name).rename(root.parent / "outside")
        make(root / name)

    return _directory(change)


_DEEP = b'{"format_version": 1, "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
_BYTES = [*lora_bytes.LENGTHS, *lora_bytes.ENTRIES, *lora_bytes.FORMATS]
BYTES = [Case(f"a pack of {case.name}", case.write, VerificationError, "a safetensors file") for case in _BYTES]
DAMAGED = [
    *(
        Case(f"a pack cut to {share:g}", of_bytes(WHOLE[: int(share * len(WHOLE))], NAME), VerificationError, "expected")
        for share in (0, 0.01, 0.5, 0.99)
    ),
    *(
        Case(f"a bit of a pack turned, at {share:g}", of_bytes(_flipped(share), NAME), VerificationError, "expected")
        for share in (0, 0.01, 0.2, 0.3, 0.6, 0.9, 1)
    ),
    Case("a plain LoRA", of_bytes(lora_bytes.WHOLE, NAME), VerificationError, "a pack with quad_adapter in its metadata"),
    Case("a manifest without its digest", of_bytes(save(_TENSORS, {MANIFEST_KEY: "{}"}), NAME), VerificationError, "expected digest"),
    *(
        Case(f"a manifest {name}", of_bytes(_packed(_TENSORS, text), NAME), VerificationError, "expected")
        for name, text in {
            "of no JSON": b"ink",
            "of a list": b"[]",
            "of a version alone": b'{"format_version":1}',
            "of version 2": b'{"format_version":2}',
            "of deep lists": b"[" * 100_000,
            "of deep lists behind a version": _DEEP,
            "of NaN": b'{"format_version":NaN}',
        }.items()
    ),
    *(
        Case(f"pickled weights, {name}", of_bytes(pickle.dumps({}), name), InputError, "pickle")
        for name in ("ink.bin", "ink.pt", "ink.ckpt")
    ),
]

_SAID: Mapping[str, tuple[dict[str, Any], type[QuadError]]] = {
    "the slots of another bundle": ({"parents": {"slots": "5" * 64, "profile": "7" * 64}}, CompatibilityError),
    "no parents": ({"parents": {}}, CompatibilityError),
    "parents of a list": ({"parents": []}, VerificationError),
    "a name above": ({"name": "../../ink"}, VerificationError),
    "a name that clears the screen": ({"name": "ink\x1b[2J\nnext"}, VerificationError),
    "no name": ({"name": ""}, VerificationError),
    "a name of 5,000 letters": ({"name": "x" * 5000}, VerificationError),
    "a rank below zero": ({"rank": -1}, VerificationError),
    "a rank of a string": ({"rank": "4"}, VerificationError),
    "a rank past 64 bits": ({"rank": 10**30}, VerificationError),
    "bits of none": ({"bits": 7}, VerificationError),
    "a size below zero": ({"size_bytes": -1}, VerificationError),
    "the digest of other tensors": ({"sha256": "0" * 64}, VerificationError),
    "tasks of a list": ({"tasks": ["removal"]}, VerificationError),
    "a task of a billion steps": (
        {"tasks": {"removal": {"adapter": "ink", "sampler": {"kind": "ddim", "steps": 10**9}, "condition": "none", "mask": "ones"}}},
        VerificationError,
    ),
    "headroom of a string": ({"headroom": "wide"}, VerificationError),
}
FORGED = [Case(f"a pack with {name}", of_bytes(_packed(_TENSORS, **said), NAME), error, "") for name, (said, error) in _SAID.items()]


def _whole(*shape: int, dtype: str = "int16") -> NDArray[Any]:
    return np.ones(shape, dtype)


_WRONG: Mapping[str, Tensors] = {
    "a rank above the slot's": {**_TENSORS, _A: _whole(5, 8), _B: _whole(8, 5)},
    "no rank": {**_TENSORS, _A: _whole(0, 8), _B: _whole(8, 0)},
    "ranks that differ": {**_TENSORS, _A: _whole(2, 8), _B: _whole(8, 3)},
    "an axis more": {**_TENSORS, _A: _whole(2, 8, 1), _B: _whole(8, 2, 1)},
    "an axis less": {**_TENSORS, _A: _whole(16), _B: _whole(16)},
    "no axes": {**_TENSORS, _A: _whole(), _B: _whole()},
    "another width": {**_TENSORS, _A: _whole(2, 9)},
    "another kernel": {**_TENSORS, _Q: _whole(2, 9, 5, 5)},
    "floats": {**_TENSORS, _A: _whole(2, 8, dtype="float32")},
    "unsigned numbers": {**_TENSORS, _A: _whole(2, 8, dtype="uint16")},
    "8 bits": {**_TENSORS, _A: _whole(2, 8, dtype="int8"), _B: _whole(8, 2, dtype="int8")},
    "A alone": {name: array for name, array in _TENSORS.items() if name != _B},
    "B alone": {name: array for name, array in _TENSORS.items() if name != _A},
    "a slot that is none": {**_TENSORS, "ghost.lora_A": _whole(2, 8), "ghost.lora_B": _whole(8, 2)},
    "a name that breaks the line": {**_TENSORS, "new\nline\x1b[2J": _whole(2)},
}
TENSORS = [Case(f"a pack with {name}", of_bytes(_packed(tensors), NAME), VerificationError, "expected") for name, tensors in _WRONG.items()]

PLACES = [
    Case("an adapter without its manifest", _directory(lambda root: (root / "adapter.json").unlink()), InputError, "expected adapter.json"),
    Case(
        "an adapter without its tensors",
        _directory(lambda root: (root / "adapter.safetensors").unlink()),
        InputError,
        "expected adapter.safetensors",
    ),
    Case(
        "an adapter's tensors changed",
        _directory(lambda root: (root / "adapter.safetensors").write_bytes(save(adapter_tensors(1, 2)))),
        VerificationError,
        "expected digest",
    ),
    Case(
        "an adapter's tensors linked out",
        _moved("adapter.safetensors", lambda file: file.symlink_to("../outside")),
        VerificationError,
        "a link out of the directory",
    ),
    Case(
        "an adapter's manifest of the system",
        _moved("adapter.json", lambda file: file.symlink_to("/etc/passwd")),
        VerificationError,
        "a link out of the directory",
    ),
    Case("an adapter's manifest as a pipe", _moved("adapter.json", os.mkfifo), InputError, "expected adapter.json"),
    Case("an empty directory", _directory(lambda root: [file.unlink() for file in root.iterdir()]), InputError, "expected adapter.json"),
    Case("a pack that is not there", lambda folder: folder / NAME, InputError, "expected a pack file"),
]


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / NAME)
    return folder / NAME


def _device(folder: Path) -> Path:
    (folder / NAME).symlink_to("/dev/zero")
    return folder / NAME


PLACES += [Case("a pack that is a pipe", _pipe, InputError, "expected"), Case("a pack without end", _device, InputError, "expected")]
