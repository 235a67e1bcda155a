"""The modules, ranks and kinds of a LoRA file, read from its header alone: a device without torch can inspect it too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.storage.header import BITS
from quad.core.storage.links import contained
from quad.core.storage.pack import MANIFEST_KEY
from quad.core.storage.stable_file import StableFile
from quad.lora.keys import parse_key, refuse_other_kinds
from quad.lora.kinds import beside, kind_of, own_rank
from quad.lora.locate import DIFFUSERS_NAME, PEFT_NAME, refuse_pickle
from quad.lora.tensors import Role, read_lora_header


@dataclass(frozen=True, kw_only=True)
class LoraHeader:
    """A LoRA file's header.

    Args:
        ranks: module path -> rank in the file.
        bits: of the widest tensor of weights.
        is_pack: the file is a pack of ours, not a plain LoRA.
        kinds: kind of adapter -> how many modules are of it.
        beside: what stands beside the matrices and no slot carries -> how many tensors.
    """

    ranks: dict[str, int]
    bits: int
    is_pack: bool
    kinds: dict[str, int] = field(default_factory=dict)
    beside: dict[str, int] = field(default_factory=dict)


def find_file(path: Path) -> Path:
    """The safetensors file meant by `path`: itself, or the one inside a diffusers or PEFT directory.

    Raises:
        InputError: there is no such file, or it is pickled.
    """
    refuse_pickle(path)
    if path.is_dir():
        path = next((contained(path, path / name, "adapter") for name in (DIFFUSERS_NAME, PEFT_NAME) if (path / name).is_file()), path)
    if not path.is_file():
        raise InputError(mismatch(str(path), "a bundle directory, a .qpack or a LoRA file", "none", "check the path"))
    return path


def read_header(path: Path) -> LoraHeader:
    """The modules, ranks and types of a LoRA file, or that it is a pack.

    Raises:
        InputError: it is no whole safetensors file, or holds no LoRA.
        UnsupportedError: it holds another kind of adapter.
    """
    try:
        header = read_lora_header(StableFile.of(path))
    except OSError as error:
        raise InputError(mismatch(str(path), "a file that can be read", error.strerror or str(error), "check its permissions")) from error
    if MANIFEST_KEY in header.metadata:
        return LoraHeader(ranks={}, bits=0, is_pack=True)
    names, widths = sorted(header.entries), set()
    modules: dict[str, dict[Role, tuple[int, ...]]] = {}
    for name in names:
        if (key := parse_key(name)) is not None and key.role != "alpha":
            modules.setdefault(f"{key.component or ''}:{key.path}", {})[key.role] = header.entries[name].shape
            widths.add(BITS[header.entries[name].dtype])
    refuse_other_kinds(names)
    kinds = {module: kind for module, roles in modules.items() if (kind := kind_of(roles))}
    if not kinds:
        contents = f"{len(names)} tensors such as {', '.join(names[:3]) or 'none'}"
        raise InputError(mismatch(str(path), "LoRA tensors (lora_A, lora_B or lora_down, lora_up)", contents, "give a LoRA file"))
    return LoraHeader(
        ranks={module: own_rank(modules[module]) for module in kinds},
        bits=max(widths),
        is_pack=False,
        kinds=dict(Counter(kinds.values())),
        beside=dict(Counter(name for name in map(beside, names) if name)),
    )
