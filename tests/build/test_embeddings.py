"""Words that adapters bring: shipped, left out where the target takes none, refused where two are the same."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from quad.build.embeddings import checked_words, embedding_files
from quad.core.errors import CompatibilityError, InputError
from quad.core.manifest import EMBEDDINGS_FILE
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.runtime.conditioning.embeddings import parse_embeddings


def adapter(name: str, **words: tuple[int, int]) -> FloatAdapter:
    rng = np.random.default_rng(0)
    vectors = {word: rng.standard_normal(shape).astype(np.float32) for word, shape in words.items()}
    return FloatAdapter(name=name, weights={}, rank=0, digest=name, embeddings=vectors)


def test_words_are_shipped_as_they_came(base: Base) -> None:
    width = base.text.hidden
    adapters = (adapter("ink", ohwx=(2, width)), adapter("plain"), adapter("fog", mist=(1, width)))
    assert checked_words(adapters, base) == adapters
    vectors = parse_embeddings("phone", embedding_files(adapters, base)[EMBEDDINGS_FILE])
    assert set(vectors) == {"mist", "ohwx"}
    np.testing.assert_array_equal(vectors["ohwx"], adapters[0].embeddings["ohwx"], strict=True)
    assert embedding_files((adapter("plain"),), base) == {}


def test_words_are_left_out_where_the_text_encoder_takes_none(base: Base) -> None:
    closed = replace(base, text=msgspec.structs.replace(base.text, first_vector_id=msgspec.UNSET))
    (ink,) = checked_words((adapter("ink", ohwx=(2, base.text.hidden)),), closed)
    assert not ink.embeddings
    assert ink.notes == ("embeddings left out, this target's text encoder takes none: ohwx are plain words there",)
    assert embedding_files((ink,), closed) == {}


def test_words_that_cannot_be(base: Base) -> None:
    width = base.text.hidden
    with pytest.raises(InputError, match="adapter 'fog': expected a trigger word of its own, found 'ohwx', which another adapter has"):
        checked_words((adapter("ink", ohwx=(2, width)), adapter("fog", ohwx=(1, width))), base)
    with pytest.raises(CompatibilityError, match=rf"adapter 'ink', 'ohwx': expected vectors of width {width}"):
        checked_words((adapter("ink", ohwx=(2, width + 1)),), base)
