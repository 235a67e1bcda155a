"""How A1111 reads a prompt, written down anew with transformers' tokenizer and torch, in float64: what ours is compared with.

Brackets are resolved the moment they close, by multiplying every piece since they were opened; tokens are dealt to chunks one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOM, MOVED = 75, 20
_PIECE = re.compile(r"\\.|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:|\\", re.DOTALL)


def weighted_pieces(prompt: str) -> list[list[Any]]:
    """`[text, weight]` in order, with `["BREAK", None]` between chunks."""
    pieces: list[list[Any]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(begin: int, factor: float) -> None:
        for piece in pieces[begin:]:
            if piece[1] is not None:
                piece[1] *= factor

    for token in _PIECE.finditer(prompt):
        text, weight = token.group(0), token.group(1)
        if text[0] == "\\":
            pieces.append([text[1:], 1.0])
        elif text in "([":
            opened[text].append(len(pieces))
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            multiply(opened["("].pop(), 1.1)
        elif text == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / 1.1)
        else:
            for number, part in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
                pieces += [["BREAK", None]] * (number > 0) + [[part, 1.0]]
    for begin in opened["("]:
        multiply(begin, 1.1)
    for begin in opened["["]:
        multiply(begin, 1 / 1.1)
    return pieces


def joined(pieces: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Neighbours of one weight become one piece, as a tokenizer reads over their border."""
    out: list[list[Any]] = []
    for text, weight in pieces:
        if out and weight is not None and out[-1][1] is not None and abs(out[-1][1] - weight) < 1e-9:
            out[-1][0] += text
        else:
            out.append([text, weight])
    return out


class Rules:
    """The hidden states that A1111 gives the network for a prompt.

    Args:
        tokenizer: transformers' own.
        encoder: a CLIPTextModel in float64, whose table is extended by the words' vectors.
        words: textual inversions, found by the ids of their names.
    """

    def __init__(self, tokenizer: Any, encoder: Any, words: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        (self._comma,) = self._ids(",")
        self._words: list[tuple[list[int], list[int]]] = []
        for word, vectors in sorted((words or {}).items(), key=lambda item: -len(self._ids(item[0]))):
            weight = encoder.get_input_embeddings().weight
            first = len(weight)
            encoder.get_input_embeddings().weight = torch.nn.Parameter(torch.cat([weight, torch.from_numpy(vectors).double()]))
            self._words.append((self._ids(word), list(range(first, first + len(vectors)))))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def chunks(self, prompt: str) -> list[list[tuple[int, float]]]:
        """Tokens and weights of each chunk."""
        chunks: list[list[tuple[int, float]]] = [[]]
        comma = -1
        for text, weight in joined(weighted_pieces(prompt)):
            if weight is None:
                chunks.append([])
                comma = -1
                continue
            ids, place = self._ids(text), 0
            while place < len(ids):
                token, chunk = ids[place], chunks[-1]
                if len(chunk) == ROOM:
                    moves = token != self._comma and comma >= 0 and len(chunk) - comma <= MOVED
                    chunks.append(chunk[comma + 1 :] if moves else [])
                    if moves:
                        del chunk[comma + 1 :]
                    comma = -1
                if token == self._comma:
                    comma = len(chunks[-1])
                name, vectors = next((pair for pair in self._words if ids[place : place + len(pair[0])] == pair[0]), ([token], [token]))
                if len(chunks[-1]) + len(vectors) > ROOM:
                    chunks.append([])
                    comma = -1
                chunks[-1] += [(vector, weight) for vector in vectors]
                place += len(name)
        return chunks

    def features(self, prompt: str) -> NDArray[np.float64]:
        """`(1, 77 n, D)`."""
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        chunks = [[(begin, 1.0), *chunk, *[(end, 1.0)] * (ROOM + 1 - len(chunk))] for chunk in self.chunks(prompt)]
        with torch.no_grad():
            hidden = self._encoder(torch.tensor([[token for token, _ in chunk] for chunk in chunks])).last_hidden_state.numpy()
        weighted = hidden * np.array([[weight for _, weight in chunk] for chunk in chunks])[..., None]
        restored = [after * (before.mean() / after.mean()) for before, after in zip(hidden, weighted, strict=True)]
        return np.concatenate(restored)[None]
