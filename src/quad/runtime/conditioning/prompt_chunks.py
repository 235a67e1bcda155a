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
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder reads it, and what the user should be told of it."""

    chunks: tuple[Chunk, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of a prompt and its weight."""

    id: int
    weight: float


def read_prompt(tokenizer: Tokenizer, prompt: str, syntax: PromptSyntax = "plain") -> PromptTokens:
    """The tokens of a prompt; of one without syntax they are what the tokenizer alone gives.

    Args:
        syntax: whether brackets and BREAK mean something; a tokenizer that sets no token before a text, such as T5's, knows none.

    Raises:
        UsageError: a weight that is none.
    """
    frame = tokenizer.frame
    if frame is None:
        tokens = tokenizer(prompt)
        return PromptTokens((Chunk(tokens.ids, np.ones(tokens.ids.shape[1])),), tokens.notes)
    text, tag_notes = (prompt, ()) if syntax == "plain" else without_tags(prompt)
    notes = list(tag_notes)
    blocks, unknown = _tokens(tokenizer, parse_prompt(text, syntax))
    if len(blocks) > 1:
        notes.append("prompt: BREAK begins a second chunk, which this bundle has not; its parts were read as one")
        blocks = [[token for block in blocks for token in block]]
    split = _split(blocks, tokenizer.text.length - len(frame), 1, tokenizer.comma)
    chunks = tuple(_chunk(tokenizer, frame, tokens) for tokens in split.chunks)
    return PromptTokens(chunks, (*notes, *unread_notes(unknown, split.dropped, tokenizer.text.length)))


def _tokens(tokenizer: Tokenizer, blocks: Sequence[Block]) -> tuple[list[list[Token]], tuple[str, ...]]:
    """The tokens of each block, and the words that have none."""
    tokens: list[list[Token]] = []
    unknown: list[str] = []
    for block in blocks:
        tokens.append([])
        for part in block:
            ids, words = tokenizer.ids_of(part.text)
            tokens[-1] += [Token(index, part.weight) for index in ids]
            unknown += words
    return tokens, tuple(dict.fromkeys(unknown))


@dataclass(kw_only=True)
class _Split:
    """Chunks while they are filled.

    Args:
        room: tokens in each.
        most: chunks.
        dropped: tokens that found no room.
    """

    room: int
    most: int
    chunks: list[list[Token]] = field(default_factory=lambda: [[]])
    dropped: int = 0
    last_comma: int = -1

    def next_chunk(self, tokens: Sequence[Token] = ()) -> None:
        self.chunks.append(list(tokens))
        self.last_comma = -1

    def add(self, token: Token, comma: int | None) -> None:
        """Put a token where it belongs."""
        chunk = self.chunks[-1]
        is_full, may_follow = len(chunk) == self.room, len(self.chunks) < self.most
        if is_full and not may_follow:
            self.dropped += 1
            return
        if is_full and token.id != comma and self.last_comma >= 0 and len(chunk) - self.last_comma <= MOST_MOVED:
            moved = chunk[self.last_comma + 1 :]
            del chunk[self.last_comma + 1 :]
            self.next_chunk(moved)
        elif is_full:
            self.next_chunk()
        if token.id == comma:
            self.last_comma = len(self.chunks[-1])
        self.chunks[-1].append(token)


def _split(blocks: Sequence[Sequence[Token]], room: int, most: int, comma: int | None) -> _Split:
    """The tokens in at most so many chunks; what is beyond the last is counted."""
    split = _Split(room=room, most=most)
    for number, block in enumerate(blocks):
        if number:
            split.next_chunk()
        for token in block:
            split.add(token, comma)
    return split


def _chunk(tokenizer: Tokenizer, frame: Sequence[int], tokens: Sequence[Token]) -> Chunk:
    """Begin, tokens, end and padding; begin and end are one token each, or not there."""
    half = len(frame) // 2
    ids = np.full((1, tokenizer.text.length), tokenizer.text.pad_id, np.int64)
    weights = np.ones(tokenizer.text.length)
    ids[0, : len(tokens) + len(frame)] = [*frame[:half], *(token.id for token in tokens), *frame[half:]]
    weights[half : half + len(tokens)] = [token.weight for token in tokens]
    return Chunk(ids, weights)
