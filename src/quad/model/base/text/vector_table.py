"""A token table whose ids beyond the last stand for vectors that the caller gives: where textual inversions enter a text encoder.

Source: Gal et al. 2022 (Textual Inversion): a learned vector takes the place of a token's own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quad.model.base.text.clip_pair import clip_encoders


class _Vectors(threading.local):
    """The vectors of one call, `(1, L, D)`; of each thread its own."""

    tensor: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Vectors], tuple[()]]:
        return _Vectors, ()  # a copy of a network reads nothing yet


class VectorTable(nn.Embedding):
    """Shares the weight of the table that it stands for, and is that table while nothing is given."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight, self._vectors = table.weight, _Vectors()
        self.train(table.training)

    @contextmanager
    def reading(self, vectors: Tensor | None) -> Iterator[None]:
        """Inside the block the ids beyond the last stand for these, each for the row at its own place, `(1, L, D)`."""
        self._vectors.tensor = vectors
        try:
            yield
        finally:
            self._vectors.tensor = None

    def forward(self, input: Tensor) -> Tensor:
        """Rows `(1, L, D)` of ids `(1, L)`."""
        if (vectors := self._vectors.tensor) is None:
            return super().forward(input)
        rows = super().forward(input.clamp(max=self.num_embeddings - 1))
        return torch.where((input >= self.num_embeddings)[..., None], vectors, rows)


def with_vector_table(text_encoder: Any) -> Any:
    """CLIP's text encoder, or a pair of them, with such a table, in place; another one as it is."""
    for encoder in clip_encoders(text_encoder):
        table = encoder.get_input_embeddings()
        (path,) = [path for path, module in encoder.named_modules() if module is table]
        if not isinstance(table, VectorTable):
            encoder.set_submodule(path, VectorTable(table))
    return text_encoder


@contextmanager
def reading(text_encoder: Any, vectors: Tensor | None) -> Iterator[None]:
    """Inside the block the tables read these vectors `(1, L, D)`, each of a pair its own part of D; None for tokens alone."""
    tables = [] if vectors is None else [encoder.get_input_embeddings() for encoder in clip_encoders(text_encoder)]
    parts: tuple[Tensor, ...] = () if vectors is None else (vectors,)
    if vectors is not None and len(tables) > 1:  # a Split into one part would stay in the graph
        parts = tuple(vectors.split([table.embedding_dim for table in tables], dim=2))
    with ExitStack() as stack:
        for table, part in zip(tables, parts, strict=True):
            stack.enter_context(table.reading(part))
        yield
