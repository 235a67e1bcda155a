"""Textual inversions of a pipeline, by the names of diffusers' methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quad.runtime.arguments import path_of, text, texts
from quad.runtime.conditioning.embeddings import TextEmbeddings


class EmbeddingMethods:
    """The part of a pipeline that knows words which stand for vectors; what changes counts from the next prompt on.

    Args:
        embeddings: the words, those that came with the bundle too.
    """

    embeddings: TextEmbeddings

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> tuple[str, ...]:
        """Words for vectors that a file brings: textual inversion of diffusers or A1111, or those inside a LoRA file (`bundle_emb`).

        Args:
            path: a `.safetensors` file, or a directory that holds `learned_embeds.safetensors`.
            token: the word, in place of the file's own.

        Returns:
            The words, which mean something in every prompt from now on.

        Raises:
            InputError: no such file, or no embedding in it. CompatibilityError: vectors of another model.
            UnsupportedError: the bundle's text encoder takes none. UsageError: one word for a file of several.
        """
        return self.embeddings.load(path_of("path", path), None if token is None else text("token", token))

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """Take words away, all by default.

        Raises:
            UsageError: an unknown word.
        """
        self.embeddings.remove(None if tokens is None else texts("tokens", tokens))

    @property
    def textual_inversions(self) -> tuple[str, ...]:
        """The words that stand for vectors."""
        return tuple(self.embeddings.words.vectors)
