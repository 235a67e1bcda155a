"""Where an adapter's files lie: one file, diffusers' or PEFT's directory, or one PEFT directory per model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import InputError, mismatch
from quad.core.storage.links import contained

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_REASON = "a pickled file, which can run code when it is opened"
DIFFUSERS_NAME, PEFT_NAME, PEFT_CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
_MODEL_DIRECTORIES = ("unet", "text_encoder")

_OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes one: a pickle, which can run code when it is opened"),
    (b"\x80\x02", PICKLE_REASON),
    (b"\x80\x03", PICKLE_REASON),
    (b"\x80\x04", PICKLE_REASON),
    (b"\x80\x05", PICKLE_REASON),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a git-lfs pointer in place of the file"),
    (b"<", "a web page in place of the file"),
    (b"{", "a JSON file"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True)
class Place:
    """One weights file.

    Args:
        config: PEFT's config beside it, None without one.
        component: `unet.` or `text_encoder.` where the directory's name says which model the keys are of, else "".
    """

    weights: Path
    config: Path | None = None
    component: str = ""


def first_bytes(path: Path) -> str:
    """What a file is that is no safetensors file, by its first bytes; "" where they do not tell."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    # A safetensors file begins with the length of its header, whose low bytes can be anything.
    length = start[3:8] == bytes(5)
    return next((name for magic, name in _OTHER_FORMATS if start.startswith(magic) and not (length and len(magic) < 4)), "")


def refuse_pickle(path: Path) -> None:
    """Raise InputError if `path` is named like a pickled weight file."""
    if path.suffix.lower() in PICKLED_SUFFIXES:
        raise InputError(mismatch(f"{path}", "a .safetensors file", PICKLE_REASON, "convert it to safetensors"))


def _in_directory(directory: Path) -> Place | None:
    for name in (DIFFUSERS_NAME, PEFT_NAME):
        if (directory / name).is_file():
            weights = contained(directory, directory / name, "adapter")
            config = directory / PEFT_CONFIG
            return Place(weights, contained(directory, config, "adapter") if name == PEFT_NAME and config.is_file() else None)
    return None


def _find(path: Path) -> list[Place]:
    if not path.is_dir():
        refuse_pickle(path)
        if not path.is_file():
            raise InputError(mismatch(f"{path}", "a LoRA file", "no such file", "check the path"))
        beside = path.with_name(PEFT_CONFIG)
        return [Place(path, contained(path.parent, beside, "adapter") if path.name == PEFT_NAME and beside.is_file() else None)]
    if (place := _in_directory(path)) is not None:
        return [place]
    models = [(name, _in_directory(path / name)) for name in _MODEL_DIRECTORIES if (path / name).is_dir()]
    if places := [Place(found.weights, found.config, f"{name}.") for name, found in models if found is not None]:
        for found in places:
            contained(path, found.weights, "adapter")
        return places
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise InputError(mismatch(f"{path}", f"{DIFFUSERS_NAME} or {PEFT_NAME}", "neither", "name the file itself"))


def find_places(path: Path) -> list[Place]:
    """The weights files of an adapter: one, or one per model.

    Raises:
        InputError: nothing there, or pickled, or a link out of the directory, or not to be read.
    """
    try:
        return _find(path)
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a LoRA file", f"{error.strerror or error}", "check the path")) from error
