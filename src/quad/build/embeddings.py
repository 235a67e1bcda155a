"""Words that adapters teach the text encoder, and the file that ships them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec
import numpy as np
from safetensors.numpy import save

from quad.core.errors import InputError, mismatch
from quad.core.manifest import EMBEDDINGS_FILE
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.runtime.conditioning.embeddings import TextEmbeddings, Vectors
from quad.runtime.conditioning.tokenizer import Tokenizer


def checked_words(adapters: Iterable[FloatAdapter], base: Base) -> tuple[FloatAdapter, ...]:
    """The adapters, each with its words, or without them and with a line where the target's text encoder takes no vectors.

    Raises:
        InputError: two adapters have one word. CompatibilityError: vectors of another model, or too many.
    """
    if base.text.first_vector_id is not msgspec.UNSET:
        whole = tuple(adapters)
        _words(whole, base)
        return whole
    return tuple(_without_words(adapter) if adapter.embeddings else adapter for adapter in adapters)


def _without_words(adapter: FloatAdapter) -> FloatAdapter:
    note = f"embeddings left out, this target's text encoder takes none: {', '.join(adapter.embeddings)} are plain words there"
    return replace(adapter, embeddings={}, notes=(*adapter.notes, note))


def embedding_files(adapters: Iterable[FloatAdapter], base: Base) -> dict[str, bytes]:
    """File name -> content; nothing where no adapter has a word."""
    words = _words(adapters, base)
    return {EMBEDDINGS_FILE: save({word: np.ascontiguousarray(words[word]) for word in sorted(words)})} if words else {}


def _words(adapters: Iterable[FloatAdapter], base: Base) -> Mapping[str, Vectors]:
    embeddings = TextEmbeddings(base.text, Tokenizer(base.tokenizer, base.text).room)
    for adapter in (adapter for adapter in adapters if adapter.embeddings):
        where = f"adapter {adapter.name!r}"
        if twice := sorted(adapter.embeddings.keys() & embeddings.words.vectors.keys()):
            remedy = "leave one of them out, or load its embedding under another word (--embedding)"
            raise InputError(mismatch(where, "a trigger word of its own", f"{twice[0]!r}, which another adapter has", remedy))
        embeddings.add(where, adapter.embeddings)
    return embeddings.words.vectors
