"""Textual inversions of a running pipeline: words that stand for vectors where a token's own row would be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from quad.core.errors import CompatibilityError, UnsupportedError, UsageError, VerificationError, mismatch
from quad.core.manifest import EMBEDDINGS_FILE, TextSpec

Vectors = NDArray[np.float32]


class WordVectors:
    """Words and their vectors, and where they stand in a text; never changed, so that a prompt is read with one state of them.

    Args:
        vectors: word -> float32 `(n, hidden)`.
    """

    def __init__(self, vectors: Mapping[str, Vectors] | None = None) -> None:
        self.vectors: Mapping[str, Vectors] = dict(vectors or {})
        self._by_case = {_folded(word): array for word, array in self.vectors.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self.vectors, key=len, reverse=True)
        return re.compile("|".join(map(_alone, words)), re.IGNORECASE)

    def split(self, text: str) -> list[str | Vectors]:
        """The text in order, with vectors in place of the words that have them, whatever their case."""
        pieces: list[str | Vectors] = []
        end = 0
        for match in self._pattern.finditer(text) if self.vectors else ():
            pieces += [text[end : match.start()], self._by_case[_folded(match[0])]]
            end = match.end()
        return [piece for piece in (*pieces, text[end:]) if not isinstance(piece, str) or piece]


def stands_in(word: str, text: str) -> bool:
    """Whether the text has the word, as `WordVectors.split` finds it."""
    return re.search(_alone(word), text, re.IGNORECASE) is not None


def _alone(word: str) -> str:
    """A pattern for the word where no letter goes on before or behind it."""
    before, behind = (r"(?<![^\W\d_])" if word[0].isalpha() else ""), (r"(?![^\W\d_])" if word[-1].isalpha() else "")
    return before + r"\s+".join(map(re.escape, word.split())) + behind


def _folded(word: str) -> str:
    return " ".join(word.casefold().split())


class TextEmbeddings:
    """The words of one pipeline; those that are added or taken away count from the next prompt on."""

    def __init__(self, text: TextSpec, room: int) -> None:
        """Args:
        room: tokens of a prompt that the text encoder reads at once.
        """
        self._text, self._room = text, room
        self.words = WordVectors()

    def add(self, where: str, vectors: Mapping[str, Vectors]) -> None:
        """Raises:
        UnsupportedError: the bundle's graph has no input for vectors. CompatibilityError: vectors of another width, or too many.
        """
        if self._text.first_vector_id is msgspec.UNSET:
            remedy = "build the bundle again, for cpu or openvino"
            raise UnsupportedError(mismatch(where, "a bundle whose text encoder takes vectors", "one without that input", remedy))
        for word, array in vectors.items():
            if array.ndim != 2 or array.shape[1] != self._text.hidden:
                expected = f"vectors of width {self._text.hidden}, as this model has"
                raise CompatibilityError(mismatch(f"{where}, {word!r}", expected, array.shape, "use one that was trained for this model"))
            if not 1 <= len(array) <= self._room:
                remedy = "use one with fewer vectors"
                raise CompatibilityError(mismatch(f"{where}, {word!r}", f"1 to {self._room} vectors", len(array), remedy))
        self.words = WordVectors({**self.words.vectors, **vectors})

    def remove(self, words: Iterable[str] | None = None) -> None:
        """Take words away, all of them by default.

        Raises:
            UsageError: an unknown word.
        """
        gone = set(self.words.vectors if words is None else words)
        if unknown := sorted(gone - self.words.vectors.keys()):
            expected = f"one of {', '.join(self.words.vectors) or 'none'}"
            raise UsageError(mismatch("token", expected, repr(unknown[0]), "see pipe.textual_inversions"))
        self.words = WordVectors({word: array for word, array in self.words.vectors.items() if word not in gone})

    def load(self, path: Path, token: str | None = None) -> tuple[str, ...]:
        """Add what a file brings, see `quad.lora.embeddings.read_embeddings`.

        Args:
            token: the word for it, in place of the file's own.

        Returns:
            Its words.

        Raises:
            InputError: no such file, or no embedding in it. UsageError: one word for a file of several.
            UnsupportedError, CompatibilityError: as `add`.
        """
        from quad.lora.embeddings import read_embeddings

        vectors = read_embeddings(path)
        if token is not None:
            if len(vectors) > 1:
                raise UsageError(mismatch(f"{path}", "one embedding for one word", f"{', '.join(vectors)}", "leave the word out"))
            if not token.strip():
                raise UsageError(mismatch(f"{path}", "a word", repr(token), "name one"))
            vectors = {token.strip(): next(iter(vectors.values()))}
        self.add(f"{path}", vectors)
        return tuple(vectors)


def parse_embeddings(where: str, content: bytes) -> dict[str, Vectors]:
    """The words of a bundle's `embeddings.safetensors`.

    Raises:
        VerificationError: it is something else.
    """
    try:
        vectors: dict[str, Vectors] = load(content)
    except Exception as error:  # the library raises its own and NumPy's
        raise VerificationError(mismatch(f"{where}/{EMBEDDINGS_FILE}", "safetensors", f"{error}", "build the bundle again")) from error
    if odd := [word for word, array in vectors.items() if array.dtype != np.float32 or not word.strip()]:
        expected = "float32 vectors with a word each"
        raise VerificationError(mismatch(f"{where}/{EMBEDDINGS_FILE}", expected, repr(odd[0]), "build the bundle again"))
    return vectors
