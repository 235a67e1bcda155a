"""Bundles whose digests and seal are right, and which mean no good all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quad.core.digests import file_digest
from quad.core.errors import BackendError, CompatibilityError, QuadError, VerificationError
from tests.hostile.bundles import resealed, sealed, signed
from tests.hostile.raw import Written
from tests.hostile.refusal import Case


def _slot(**changes: Any) -> Callable[[Any], Any]:
    return lambda table: {"slots": [{**table["slots"][0], **changes}, *table["slots"][1:]]}


_ENTRY = {"sha256": "0" * 64, "size_bytes": 1}
_FORGED: Mapping[str, dict[str, Any]] = {
    "a file above": {"files": {"../outside": _ENTRY}},
    "a file of the system": {"files": {"/etc/passwd": _ENTRY}},
    "a file above, in the middle": {"files": {"unet/../../outside": _ENTRY}},
    "a file of another system": {"files": {"..\\outside": _ENTRY}},
    "a file of no name": {"files": {"": _ENTRY}},
    "a file of a name with a zero": {"files": {"a\0b": _ENTRY}},
    "a file of 5,000 letters": {"files": {"x" * 5000: _ENTRY}},
    "a file that is a folder": {"files": {"unet": _ENTRY}},
    "a file that breaks the line": {"files": {"new\nline\x1b[2J": _ENTRY}},
    "the slots of another bundle": {"parents": {"slots": "5" * 64}},
    "the profile of another bundle": {"parents": {"profile": "7" * 64}},
    "no parents": {"parents": []},
    "an adapter that is not there": {"adapters": ["ghost"]},
    "an adapter above": {"adapters": ["../../outside"]},
    "no unet": {"components": {"unet": None}},
    "a unet of another file": {"components": {"unet": {"file": "/etc/passwd"}}},
    "a unet with data above": {"components": {"unet": {"file": "unet/model.onnx", "data_files": ["../outside"]}}},
    "a graph of a group that no profile has": {"components": {"unet": {"groups": [{"file": "unet/model.onnx"}]}}},
    "a graph of a group above": {"components": {"unet": {"groups": [{"file": "../outside"}]}}},
    "groups of no graph": {"components": {"unet": {"groups": [{}]}}},
    "groups of another part": {"components": {"vae_decoder": {"groups": [{"file": "vae_decoder/model.onnx"}]}}},
    "a size of nothing": {"size": 0},
    "a size below zero": {"size": -64},
    "a size of a billion": {"size": 64 * 10**9},
    "a size past 64 bits": {"size": 10**30},
    "no sizes": {"sizes": []},
    "a size of three numbers": {"sizes": [[64, 64, 3]]},
    "a height of a billion": {"sizes": [[64, 64 * 10**9]]},
    "a width that is not the size": {"sizes": [[8, 8]]},
    "a height of no latent pixels": {"sizes": [[64, 65]]},
    "a latent of no factor": {"latent": {"factor": 0}},
    "a latent of a billion channels": {"latent": {"channels": 10**9}},
    "a latent of other scales": {"latent": {"scale": []}},
    "a text of a trillion tokens": {"text": {"length": 10**12}},
    "a text of no tokens": {"text": {"length": 0}},
    "a pad below zero": {"text": {"pad_id": -5}},
    "a schedule of a trillion": {"schedule": {"steps": 10**12}},
    "a schedule of none": {"schedule": {"steps": 0}},
    "a sampler that is none": {
        "tasks": {"text-to-image": {"adapter": None, "sampler": {"kind": "abacus", "steps": 3}, "condition": "none", "mask": "ones"}}
    },
    "a sampler of a billion steps": {
        "tasks": {"text-to-image": {"adapter": None, "sampler": {"kind": "ddim", "steps": 10**9}, "condition": "none", "mask": "ones"}}
    },
    "a task of an adapter that is not there": {
        "tasks": {"text-to-image": {"adapter": "ghost", "sampler": {"kind": "ddim", "steps": 2}, "condition": "none", "mask": "ones"}}
    },
}
FORGED = [Case(f"sealed with {name}", resealed(**changes), VerificationError, "expected") for name, changes in _FORGED.items()]

# These are refused by the call that would use them, whose other tasks may be sound.
_TASKS: Mapping[str, dict[str, Any]] = {
    "a sampler of more steps than timesteps": {
        "tasks": {"text-to-image": {"adapter": None, "sampler": {"kind": "ddim", "steps": 5000}, "condition": "none", "mask": "ones"}}
    },
    "an olss without its table": {
        "tasks": {"text-to-image": {"adapter": None, "sampler": {"kind": "olss", "steps": 2}, "condition": "none", "mask": "ones"}}
    },
    "an olss of another length": {
        "tasks": {
            "text-to-image": {
                "adapter": None,
                "sampler": {"kind": "olss", "steps": 2, "olss": {"timesteps": [900], "w": [1.0], "v": [[1.0, 2.0, 3.0]]}},
                "condition": "none",
                "mask": "ones",
            }
        }
    },
}
TASKS = [Case(f"sealed with {name}", resealed(**changes), QuadError, "expected") for name, changes in _TASKS.items()]

_SLOTS: Mapping[str, dict[str, Any]] = {
    "of another rank than the graph": {"rank": 64},
    "of a rank of a trillion": {"rank": 10**12},
    "of no rank": {"rank": 0},
    "of a rank below zero": {"rank": -1},
    "of a trillion inputs": {"in_features": 10**12},
    "of a kernel of a billion": {"kernel": [10**9, 10**9]},
    "of no type": {"dtype": "object"},
    "of another graph": {"component": "text_encoder"},
    "of a graph that is none": {"component": "ghost"},
    "of another path": {"path": "ghost"},
}
_PROFILES: Mapping[str, Callable[[Any], Any]] = {
    "a profile of a list": lambda _: [],
    "a profile of strings": lambda p: {**p, "encodings": {"unet": {"x": "y"}}},
    "a profile of a group without a graph": lambda p: {**p, "groups": [{"encodings": {}, "mode": "anchor"}]},
    "a profile of no groups": lambda p: {**p, "groups": []},
    "a profile of a thousand groups": lambda p: {**p, "groups": [{"encodings": {}, "mode": "anchor"}] * 1000},
}
SLOTS = [
    *(Case(f"slots {name}", signed("slots.json", _slot(**changes)), VerificationError, "expected") for name, changes in _SLOTS.items()),
    Case("slots of another type", signed("slots.json", _slot(dtype="int8")), CompatibilityError, "was packed for slots"),
    *(Case(name, signed("profile.json", change), VerificationError, "expected") for name, change in _PROFILES.items()),
]


def _graph(content: bytes) -> Written:
    def write(root: Path) -> Path:
        file = root / "unet/model.onnx"
        file.write_bytes(content)
        sealed(root, files={"unet/model.onnx": {"sha256": file_digest(file), "size_bytes": len(content)}})
        return root

    return write


GRAPHS = [
    Case("a graph of no bytes", _graph(b""), BackendError, "engine ort: cannot load"),
    Case("a graph of words", _graph(b"graph" * 99), BackendError, "engine ort: cannot load"),
    Case("a graph of zeros", _graph(bytes(4096)), BackendError, "engine ort: cannot load"),
]
