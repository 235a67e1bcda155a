"""Prompts: ids of the right length, and unknown words said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quad.core.errors import VerificationError
from quad.core.manifest import TextSpec
from quad.runtime.conditioning.tokenizer import Tokenizer

TEXT = TextSpec(length=6, pad_id=0, hidden=8)


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer(tiny_bundle / "tokenizer/tokenizer.json", TEXT)


def test_ids_are_padded(tokenizer: Tokenizer) -> None:
    tokens = tokenizer("Remove the car")
    np.testing.assert_array_equal(tokens.ids, np.array([[2, 3, 4, 0, 0, 0]]), strict=True)
    assert tokens.notes == ()
    assert not tokenizer("").ids.any()


def test_unknown_words_are_said_once_each(tokenizer: Tokenizer) -> None:
    tokens = tokenizer("remove the Dragon dragon and the car")
    assert tokens.unknown == ("Dragon", "dragon", "and")
    assert "does not know 'Dragon', 'dragon', 'and'" in tokens.notes[0]


def test_what_is_cut_is_said(tokenizer: Tokenizer) -> None:
    tokens = tokenizer("the car " * 4 + "zebra")
    assert tokens.ids.shape == (1, 6)
    assert tokens.dropped == 3
    assert tokens.unknown == ("zebra",)
    assert "3 tokens beyond the first 6" in tokens.notes[1]


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError, match="expected a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json", TEXT)
