"""Textual inversion: words that a file teaches the text encoder, each as vectors that stand where a token's own would.

    diffusers           one tensor; its key is the word
    A1111, OneTrainer   one tensor with a key that all files have (`emb_params`); the file's name is the word
    inside a LoRA       `bundle_emb.WORD.clip_l`, for any number of words (OneTrainer)
    SDXL                two tensors, `clip_l` and `clip_g`, alone or inside a LoRA: vectors of its two text encoders

Source: Gal 2022 (Textual Inversion).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.stable_file import StableFile
from quad.lora.keys import is_bundled, parse_key
from quad.lora.locate import refuse_pickle
from quad.lora.quote import listed, quoted
from quad.lora.tensors import StoredTensor, read_tensors

Vectors = NDArray[np.float32]

EMBEDDINGS_NAME = "learned_embeds.safetensors"  # as diffusers' trainers save it in a directory
_BUNDLED = re.compile(r"^bundle_emb\.(?P<word>.+)\.(?P<part>string_to_param\.\*|[\w-]+)$")
# Keys of what CLIP's token embedding is given; the misspelt one is OneTrainer's.
_PARTS = ("emb_params", "emp_params", "clip_l", "clip_h", "string_to_param.*", "*")
_PAIR = ("clip_l", "clip_g")  # whose vectors stand side by side, in this order
_OTHER_ENCODERS = ("clip_g", "t5", "t5xxl")
_LONGEST_WORD = 200


def bundled_embeddings(where: str, tensors: Mapping[str, StoredTensor]) -> dict[str, Vectors]:
    """The words that a LoRA file brings: word -> vectors `(n, width)`.

    Args:
        where: begins every message.
        tensors: all of the file. Words for another encoder than CLIP's, and vectors that are added behind the encoder, are not read.

    Raises:
        InputError: a word is given twice or is none, or its tensor is no list of finite vectors.
    """
    keys: dict[str, dict[str, str]] = {}  # word -> part -> key
    for key in tensors:
        if (match := _BUNDLED.match(key)) is not None:
            keys.setdefault(match["word"], {})[match["part"]] = key
    words: dict[str, Vectors] = {}
    for name, parts in keys.items():
        read = [part for part in parts if part in _PARTS]
        if not read:
            continue
        word = _checked_word(where, name)
        if len(read) > 1:
            raise InputError(mismatch(where, f"one embedding for {word!r}", "two", "leave one of them out"))
        if parts.keys() >= set(_PAIR):
            words[word] = _joined(where, {part: tensors[parts[part]] for part in _PAIR})
        else:
            words[word] = _vectors(where, parts[read[0]], tensors[parts[read[0]]])
    return words


def bundled_words(keys: Iterable[str]) -> tuple[str, ...]:
    """The words that a LoRA file brings, by its keys alone."""
    matches = [match for key in keys if (match := _BUNDLED.match(key)) is not None]
    return tuple(dict.fromkeys(match["word"] for match in matches if match["part"] in _PARTS))


def unread_embeddings(keys: Iterable[str]) -> list[str]:
    """Of a LoRA file's keys, those of embeddings that `bundled_embeddings` passes over."""
    matches = {key: _BUNDLED.match(key) for key in keys if is_bundled(key)}
    paired = {match["word"] for match in matches.values() if match is not None and match["part"] == _PAIR[0]}

    def is_read(match: re.Match[str] | None) -> bool:
        return match is not None and (match["part"] in _PARTS or (match["part"] == _PAIR[1] and match["word"] in paired))

    return [key for key, match in matches.items() if not is_read(match)]


def embedding_notes(words: Mapping[str, Vectors], unread: Iterable[str]) -> tuple[str, ...]:
    """A line that names the words, and one for what was passed over."""
    shown = listed(f"{word} ({len(vectors)} vector{'s' if len(vectors) > 1 else ''})" for word, vectors in words.items())
    passed = listed(unread)
    notes = f"trigger words with embeddings: {shown}" if words else "", f"embeddings of another text encoder left out: {passed}"
    return tuple(note for note, applies in zip(notes, (words, passed), strict=True) if applies)


def read_embeddings(path: Path) -> dict[str, Vectors]:
    """The words of a textual-inversion file, or those that a LoRA file brings: word -> vectors `(n, width)`, float32.

    Args:
        path: a `.safetensors` file, or a directory that holds `learned_embeds.safetensors`.

    Raises:
        InputError: missing, pickled or truncated file, no embedding in it, or one that is no list of finite vectors.
        UnsupportedError: the vectors are of another model's text encoder.
    """
    refuse_pickle(path)
    try:
        file = path / EMBEDDINGS_NAME if path.is_dir() else path
        if not file.is_file():
            raise InputError(mismatch(f"{path}", "a textual-inversion file", "no such file", "check the path"))
        tensors, _ = read_tensors(StableFile.of(file))
    except OSError as error:
        raise InputError(mismatch(f"{path}", "a textual-inversion file", error.strerror or f"{error}", "check its permissions")) from error
    if words := bundled_embeddings(f"{path}", tensors):
        return words
    return _lone_embedding(file, tensors)


def is_lone_embedding(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether all tensors of a file are one embedding, as far as that can be told of a file that may be anything: vectors, and a word.

    Args:
        shapes: of the tensors, by key.
    """
    return shapes.keys() == set(_PAIR) or (len(shapes) == 1 and all(_may_be_vectors(*item) for item in shapes.items()))


def _may_be_vectors(key: str, shape: tuple[int, ...]) -> bool:
    return not _is_module(key) and ("." not in key or key in _PARTS) and len(shape) in (1, 2)


def _is_module(key: str) -> bool:
    return parse_key(key) is not None or is_bundled(key) or key.endswith((".weight", ".bias"))


def _lone_embedding(file: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Vectors]:
    """The word of a file that holds one embedding and nothing else."""
    if tensors.keys() == set(_PAIR):
        return {_checked_word(f"{file}", file.stem): _joined(f"{file}", tensors)}
    if any(key in _OTHER_ENCODERS for key in tensors):
        found = f"vectors for {', '.join(sorted(tensors))}: another model's text encoders"
        raise UnsupportedError(mismatch(f"{file}", "an embedding for one CLIP", found, "use one that was trained for this base"))
    if len(tensors) != 1 or any(map(_is_module, tensors)):
        actual = f"{len(tensors)} tensors: {listed(tensors)}" if tensors else "no tensors at all"
        remedy = "give a textual-inversion file (.safetensors of diffusers or A1111)"
        raise InputError(mismatch(f"{file}", "one embedding, or a LoRA with bundle_emb", actual, remedy))
    ((key, tensor),) = tensors.items()
    word = file.stem if key in _PARTS else key
    return {_checked_word(f"{file}", word): _vectors(f"{file}", key, tensor)}


def _joined(where: str, parts: Mapping[str, StoredTensor]) -> Vectors:
    """The vectors of SDXL's two text encoders, each word's side by side."""
    first, second = (_vectors(where, part, parts[part]) for part in _PAIR)
    if len(first) != len(second):
        actual = f"{len(first)} and {len(second)}"
        raise InputError(mismatch(where, "as many vectors for clip_l as for clip_g", actual, "use another checkpoint of its training"))
    return np.concatenate([first, second], axis=1)


def _checked_word(where: str, word: str) -> str:
    if not (word.strip() and word.isprintable() and len(word) <= _LONGEST_WORD):
        expected = f"a word of 1 to {_LONGEST_WORD} printable letters"
        raise InputError(mismatch(where, expected, f"'{quoted(word)}'", "name the embedding otherwise"))
    return word


def _vectors(where: str, key: str, tensor: StoredTensor) -> Vectors:
    """One tensor as `(n, width)`; a lone vector may lack the first axis."""
    spelled = f"{where}, '{quoted(key)}'"
    if tensor.ndim not in (1, 2) or not tensor.size:
        raise InputError(mismatch(spelled, "vectors (n, width)", tensor.shape, "is it a textual-inversion file?"))
    with np.errstate(over="ignore"):  # what overflows is refused below
        vectors: Vectors = np.atleast_2d(tensor.values().astype(np.float32))
    if not np.isfinite(vectors).all():
        raise InputError(mismatch(spelled, "finite numbers", "NaN or Inf", "the training diverged; use another checkpoint"))
    return vectors
