"""A prompt's tokens in chunks, each as long as the text encoder reads at once.

A chunk holds the tokenizer's begin and end and the tokens between them, 75 of CLIP's 77. Where one is full and another follows, the
tokens behind its last comma move on, if they are few.
Source: the manual of AUTOMATIC1111's stable-diffusion-webui, "Infinite prompt length".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quad.runtime.conditioning.embeddings import WordVectors
from quad.runtime.conditioning.prompt_syntax import Block, PromptSyntax, parse_prompt, without_tags
from quad.runtime.conditioning.tokenizer import Tokenizer, unread_notes

# Tokens that may move to the next chunk, so that it begins behind a comma.
MOST_MOVED = 20


@dataclass(frozen=True)
class Chunk:
    """One call of the text encoder.

    Args:
        ids: int64 `(1, length)`, filled up with the pad id.
        weights: float64 `(length,)`, 1 where the prompt says nothing.
        vectors: float32 `(1, length, hidden)`, what textual inversions put in place of tokens; None where there are none.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]
    vectors: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder reads it, and what the user should be told of it."""

    chunks: tuple[Chunk, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of a prompt and its weight, or the vectors `(n, hidden)` of a word, which stay together."""

    id: int
    weight: float
    vectors: NDArray[np.float32] | None = None

    @property
    def places(self) -> int:
        """Places that it takes in a chunk."""
        return 1 if self.vectors is None else len(self.vectors)


def read_prompt(tokenizer: Tokenizer, prompt: str, syntax: PromptSyntax = "plain", words: WordVectors | None = None) -> PromptTokens:
    """The tokens of a prompt; of one without syntax they are what the tokenizer alone gives.

    Args:
        syntax: whether brackets and BREAK mean something; a tokenizer that sets no token before a text, such as T5's, knows none.
        words: textual inversions, None for none.

    Raises:
        UsageError: a weight that is none.
    """
    frame = tokenizer.frame
    if frame is None:
        tokens = tokenizer(prompt)
        return PromptTokens((Chunk(tokens.ids, np.ones(tokens.ids.shape[1])),), tokens.notes)
    text, tag_notes = (prompt, ()) if syntax == "plain" else without_tags(prompt)
    notes = list(tag_notes)
    blocks, unknown = _tokens(tokenizer, parse_prompt(text, syntax), words or WordVectors())
    most = tokenizer.text.most_chunks
    if len(blocks) > most:
        notes.append(f"prompt: BREAK begins chunk {most + 1}, which this bundle has not (--prompt-chunks); its parts were read as one")
        blocks = [[token for block in blocks for token in block]]
    split = _split(blocks, tokenizer.room, most, tokenizer.comma)
    chunks = tuple(_chunk(tokenizer, frame, tokens) for tokens in split.chunks)
    return PromptTokens(chunks, (*notes, *unread_notes(unknown, split.dropped, tokenizer.text.context)))


def _tokens(tokenizer: Tokenizer, blocks: Sequence[Block], words: WordVectors) -> tuple[list[list[Token]], tuple[str, ...]]:
    """The tokens of each block, and the words that have none."""
    tokens: list[list[Token]] = []
    unknown: list[str] = []
    first_vector_id = tokenizer.text.first_vector_id or 0
    for block in blocks:
        tokens.append([])
        for part in block:
            for piece in words.split(part.text):
                if not isinstance(piece, str):
                    tokens[-1].append(Token(first_vector_id, part.weight, piece))
                    continue
                ids, strange = tokenizer.ids_of(piece)
                tokens[-1] += [Token(index, part.weight) for index in ids]
                unknown += strange
    return tokens, tuple(dict.fromkeys(unknown))


@dataclass(kw_only=True)
class _Split:
    """Chunks while they are filled.

    Args:
        room: places in each.
        most: chunks.
        dropped: tokens that found no room.
        last_comma: index in the last chunk, -1 where it has none.
    """

    room: int
    most: int
    chunks: list[list[Token]] = field(default_factory=lambda: [[]])
    dropped: int = 0
    last_comma: int = -1

    @property
    def may_go_on(self) -> bool:
        """Whether another chunk may begin."""
        return len(self.chunks) < self.most

    def next_chunk(self, tokens: Sequence[Token] = ()) -> None:
        self.chunks.append(list(tokens))
        self.last_comma = -1

    def add(self, token: Token, comma: int | None) -> None:
        """Put a token where it belongs; once something found no room, nothing behind it is read."""
        is_comma = token.vectors is None and token.id == comma
        if self._places(0) == self.room and self.may_go_on:
            is_near = self.last_comma >= 0 and self._places(self.last_comma) <= MOST_MOVED
            self._move_on(self.last_comma + 1 if is_near and not is_comma else len(self.chunks[-1]))
        if self._places(0) + token.places > self.room and self.may_go_on:
            self.next_chunk()
        if self.dropped or self._places(0) + token.places > self.room:
            self.dropped += token.places
            return
        if is_comma:
            self.last_comma = len(self.chunks[-1])
        self.chunks[-1].append(token)

    def _places(self, begin: int) -> int:
        """Places that the last chunk's tokens from an index on take."""
        return sum(token.places for token in self.chunks[-1][begin:])

    def _move_on(self, begin: int) -> None:
        """The last chunk's tokens from an index on begin another."""
        moved = self.chunks[-1][begin:]
        del self.chunks[-1][begin:]
        self.next_chunk(moved)


def _split(blocks: Sequence[Sequence[Token]], room: int, most: int, comma: int | None) -> _Split:
    """The tokens in at most so many chunks; what is beyond the last is counted."""
    split = _Split(room=room, most=most)
    for number, block in enumerate(blocks):
        if number and split.may_go_on:
            split.next_chunk()
        for token in block:
            split.add(token, comma)
    return split


def _chunk(tokenizer: Tokenizer, frame: Sequence[int], tokens: Sequence[Token]) -> Chunk:
    """Begin, tokens, end and padding; begin and end are one token each, or not there."""
    text, half = tokenizer.text, len(frame) // 2
    ids, weights = np.full((1, text.length), text.pad_id, np.int64), np.ones(text.length)
    vectors = np.zeros((1, text.length, text.hidden), np.float32)
    ids[0, :half] = frame[:half]
    place = half
    for token in tokens:
        places = slice(place, place + token.places)
        ids[0, places], weights[places] = token.id, token.weight
        if token.vectors is not None:
            vectors[0, places] = token.vectors
        place += token.places
    ids[0, place : place + half] = frame[half:]
    return Chunk(ids, weights, vectors if any(token.vectors is not None for token in tokens) else None)
