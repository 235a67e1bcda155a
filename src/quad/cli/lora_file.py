"""What a LoRA file holds, read from its header alone: a device without torch can inspect it too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from quad.core.errors import InputError, mismatch
from quad.core.pack import MANIFEST_KEY
from quad.model.lora_keys import parse_key, refuse_other_kinds

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DIRECTORY_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}


@dataclass(frozen=True)
class LoraHeader:
    """A LoRA file's header.

    Args:
        ranks: module path -> rank.
        bits: of the widest down-projection.
        is_pack: the file is a pack of ours, not a plain LoRA.
    """

    ranks: dict[str, int]
    bits: int
    is_pack: bool


def find_file(path: Path) -> Path:
    """The safetensors file meant by `path`: itself, or the one inside a diffusers or PEFT directory.

    Raises:
        InputError: there is no such file, or it is pickled.
    """
    if path.suffix.lower() in PICKLES:
        raise InputError(
            mismatch(str(path), "a safetensors file", f"a pickle ({path.suffix}), which can run code", "convert it to safetensors")
        )
    if path.is_dir():
        path = next((path / name for name in DIRECTORY_FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise InputError(mismatch(str(path), "a bundle directory, a .qpack or a LoRA file", "none", "check the path"))
    return path


def read_header(path: Path) -> LoraHeader:
    """The modules, ranks and type of a LoRA file, or that it is a pack.

    Raises:
        InputError: it is no whole safetensors file, or holds no LoRA.
        UnsupportedError: it holds another kind of adapter.
    """
    try:
        with safe_open(str(path), framework="np") as tensors:
            names = sorted(tensors.keys())
            if MANIFEST_KEY in (tensors.metadata() or {}):
                return LoraHeader({}, 0, True)
            keys = {name: key for name in names if (key := parse_key(name)) is not None and key.role == "down"}
            parts = {key.path: tensors.get_slice(name) for name, key in keys.items()}
            ranks = {module: int(part.get_shape()[0]) for module, part in parts.items()}
            bits = max((BITS.get(str(part.get_dtype()), 8) for part in parts.values()), default=0)
    except SafetensorError as error:
        raise InputError(mismatch(str(path), "a whole safetensors file", f"something else ({error})", "fetch or save it again")) from error
    refuse_other_kinds(names)
    if not ranks:
        found = f"{len(names)} tensors such as {', '.join(names[:3]) or 'none'}"
        raise InputError(mismatch(str(path), "LoRA tensors (lora_A, lora_B or lora_down, lora_up)", found, "give a LoRA file"))
    return LoraHeader(ranks, bits, False)
