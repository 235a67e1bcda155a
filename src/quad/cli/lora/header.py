"""The modules, ranks and kinds of a LoRA file, read from its header alone: a device without torch can inspect it too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.sampling import AdapterDefaults
from quad.core.storage.header import BITS
from quad.core.storage.pack import MANIFEST_KEY
from quad.core.storage.pickles import is_pickled
from quad.core.storage.stable_file import StableFile
from quad.lora.embeddings import EMBEDDINGS_NAME, bundled_words, is_lone_embedding, read_embeddings
from quad.lora.keys import dialect_of, parse_key, refuse_other_kinds
from quad.lora.kinds import beside, kind_of, own_rank
from quad.lora.locate import DIFFUSERS_NAME, PEFT_NAME, WeightsFile, refuse_pickle, weights_files
from quad.lora.report.stated_defaults import stated_defaults
from quad.lora.report.trained_on import TrainedOn
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
        dialects: how names are spelled -> how many tensors are so.
        words: that an embedding in the file stands for.
        trained_on: the base by the trainer's metadata.
        defaults: how it is meant to be run, by its metadata.
        tensors: how many there are.
    """

    ranks: dict[str, int]
    bits: int
    is_pack: bool
    kinds: dict[str, int] = field(default_factory=dict)
    beside: dict[str, int] = field(default_factory=dict)
    dialects: dict[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    defaults: AdapterDefaults = field(default_factory=AdapterDefaults)
    tensors: int = 0


def find_files(path: Path) -> list[WeightsFile]:
    """The safetensors files meant by `path`: itself, or those inside a diffusers or PEFT directory, one for each model.

    Raises:
        InputError: there is no such file, or it is pickled.
    """
    refuse_pickle(path)
    if path.is_dir() and any(entry.is_dir() or entry.name in (DIFFUSERS_NAME, PEFT_NAME) for entry in path.iterdir()):
        return weights_files(path)
    if not path.is_file():
        raise InputError(mismatch(str(path), "a bundle directory, a .qpack or a LoRA file", "none", "check the path"))
    return [WeightsFile(path)]


def read_words(path: Path) -> dict[str, tuple[int, int]]:
    """The words of a textual inversion with the shape of their vectors; none where the file is something else.

    Raises:
        InputError: it is one, and broken.
    """
    file = path / EMBEDDINGS_NAME if path.is_dir() else path
    if not file.is_file() or is_pickled(file):
        return {}
    header = read_lora_header(StableFile.of(file))
    if not is_lone_embedding({key: entry.shape for key, entry in header.entries.items()}):
        return {}
    return {word: (len(vectors), vectors.shape[1]) for word, vectors in read_embeddings(file).items()}


def read_headers(path: Path) -> LoraHeader:
    """The modules, ranks and types of a LoRA, or that it is a pack: of its file, or of all its files.

    Raises:
        InputError, UnsupportedError: as `read_header`.
    """
    headers = [read_header(file.path, file.component) for file in find_files(path)]
    if len(headers) == 1:
        return headers[0]
    return LoraHeader(
        ranks={module: rank for header in headers for module, rank in header.ranks.items()},
        bits=max(header.bits for header in headers),
        is_pack=False,
        kinds=dict(sum((Counter(header.kinds) for header in headers), Counter[str]())),
        beside=dict(sum((Counter(header.beside) for header in headers), Counter[str]())),
        dialects=dict(sum((Counter(header.dialects) for header in headers), Counter[str]())),
        words=tuple(word for header in headers for word in header.words),
        trained_on=headers[0].trained_on,
        defaults=headers[0].defaults,
        tensors=sum(header.tensors for header in headers),
    )


def read_header(path: Path, component: str = "") -> LoraHeader:
    """The modules, ranks and types of a LoRA file, or that it is a pack.

    Args:
        component: `unet.` or `text_encoder.` where the file's directory says which model its keys are of.

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
            modules.setdefault(f"{key.component or component.rstrip('.')}:{key.path}", {})[key.role] = header.entries[name].shape
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
        dialects=dict(Counter(map(dialect_of, names))),
        words=bundled_words(names),
        trained_on=TrainedOn.of(header.metadata),
        defaults=stated_defaults(str(path), header.metadata),
        tensors=len(names),
    )
