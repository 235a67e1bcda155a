"""Prompts to token ids, and what of a prompt the model cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as Encoder

from quad.core.errors import VerificationError, lack_of, mismatch
from quad.core.manifest import TextSpec


@dataclass(frozen=True)
class Tokens:
    """One prompt as the text encoder reads it.

    Args:
        ids: int64 `(1, length)`, filled up with the pad id.
        unknown: words of the prompt outside the vocabulary, in order, each once.
        dropped: tokens that did not fit into `length`.
    """

    ids: NDArray[np.int64]
    unknown: tuple[str, ...] = ()
    dropped: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines to tell the user: unknown words, and tokens that were not read."""
        return unread_notes(self.unknown, self.dropped, self.ids.shape[1])


def unread_notes(unknown: Sequence[str], dropped: int, length: int) -> tuple[str, ...]:
    """Lines about words that the model does not know, and tokens beyond the last that it reads."""
    lines = []
    if unknown:
        words = ", ".join(repr(word) for word in unknown)
        lines.append(f"prompt: this model does not know {words}; it reads them as unknown words")
    if dropped:
        lines.append(f"prompt: {dropped} tokens beyond the first {length} were not read")
    return tuple(lines)


class Tokenizer:
    """A `tokenizer.json` with a fixed length.

    Args:
        text: what the text encoder reads.
        frame: ids that begin and end every text, two or none; None where the tokenizer frames it otherwise.
        comma: id of a comma alone, None where it has no one id.
    """

    def __init__(self, source: Path | str | bytes, text: TextSpec) -> None:
        """Read it.

        Args:
            source: the file, or its text or bytes.

        Raises:
            VerificationError: it is no tokenizer.
        """
        try:
            content = source.read_bytes() if isinstance(source, Path) else source
            self._encoder = Encoder.from_str(content) if isinstance(content, str) else Encoder.from_buffer(content)
        except Exception as error:  # the library raises the bare class
            where = str(source) if isinstance(source, Path) else "tokenizer"
            raise lack_of(where, error) or VerificationError(
                mismatch(where, "a tokenizer", f"something else ({error})", "build the bundle again")
            ) from error
        self.text = text
        self._encoder.no_padding()
        self._encoder.enable_truncation(max_length=text.length)
        unknown = getattr(self._encoder.model, "unk_token", None)
        self._unknown_id = None if unknown is None else self._encoder.token_to_id(unknown)
        frame, comma = self._encoder.encode("").ids, self.ids_of(",")[0]
        self.frame: tuple[int, ...] | None = tuple(frame) if len(frame) in (0, 2) else None
        self.comma = comma[0] if len(comma) == 1 else None

    def __call__(self, prompt: str) -> Tokens:
        """Ids of a prompt, with the words that have none."""
        encoding = self._encoder.encode(prompt)
        ids = np.full((1, self.text.length), self.text.pad_id, dtype=np.int64)
        ids[0, : len(encoding.ids)] = encoding.ids
        parts = [encoding, *encoding.overflowing]
        special = sum(encoding.special_tokens_mask)
        dropped = sum(max(len(part.ids) - special, 0) for part in encoding.overflowing)
        return Tokens(ids, self._unknown(prompt, parts), dropped)

    @property
    def room(self) -> int:
        """Tokens of a text that are read at once: all but the frame."""
        return self.text.length - len(self.frame or ())

    def ids_of(self, text: str) -> tuple[list[int], tuple[str, ...]]:
        """Ids of a text of any length without the frame, and the words of it that have none."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        parts = [encoding, *encoding.overflowing]
        return [index for part in parts for index in part.ids], self._unknown(text, parts)

    def _unknown(self, text: str, parts: Sequence[Encoding]) -> tuple[str, ...]:
        """Words of the text outside the vocabulary, in order, each once."""
        words = [
            text[start:stop]
            for part in parts
            for token, (start, stop) in zip(part.ids, part.offsets, strict=True)
            if token == self._unknown_id and stop > start
        ]
        return tuple(dict.fromkeys(words))
