"""A SentencePiece model alone gives the ids of the tokenizer.json that was made from the same pieces."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.model.base.open import open_model
from quad.model.base.text.t5_tokenizer import t5_tokenizer
from tests.pixart import PIECES, save_pixart, tokenizer

SENTINELS = 6


def spiece(file: Path, pieces: Sequence[str] = PIECES, **trainer: Any) -> Path:
    """The pieces of `tests.pixart.tokenizer` with its scores, as SentencePiece writes them."""
    model = sentencepiece_model.ModelProto()
    for number, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(number), type={0: 3, 1: 3, 2: 2}.get(number, 1))
    for field, value in {"model_type": 1, "unk_id": 2, "pad_id": 0, "eos_id": 1, "bos_id": -1, **trainer}.items():
        setattr(model.trainer_spec, field, value)
    file.write_bytes(model.SerializeToString())
    return file


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pixart(tmp_path_factory.mktemp("t5") / "model")


def test_pixart_as_it_is_published_opens(pixart: Path, tmp_path: Path) -> None:
    """Without sentinels: the small text encoder has no rows for them."""
    copied = Path(shutil.copytree(pixart, tmp_path / "model"))
    shutil.rmtree(copied / "tokenizer")
    (copied / "tokenizer").mkdir()
    spiece(copied / "tokenizer" / "spiece.model")
    (copied / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    base, reference = open_model(copied), open_model(pixart)
    ours, theirs = Tokenizer.from_str(base.tokenizer), Tokenizer.from_str(reference.tokenizer)
    assert base.text == reference.text
    draw = np.random.default_rng(0)
    words = [word for piece in PIECES[3:] if (word := piece.strip("\u2581"))] + ["Tee", "zebra", "noon", "ea", "\u00e9", "TEA,"]
    for length in range(200):
        prompt = " ".join(draw.choice(words, length % 20))
        assert ours.encode(prompt).ids == theirs.encode(prompt).ids, prompt


def test_sentinels_follow_the_pieces(tmp_path: Path) -> None:
    made = t5_tokenizer(spiece(tmp_path / "spiece.model"), {"extra_ids": SENTINELS})
    assert made.get_vocab_size() == len(PIECES) + SENTINELS
    assert made.token_to_id("<extra_id_0>") == len(PIECES) + SENTINELS - 1
    plain = tokenizer().backend_tokenizer
    assert made.encode("a red house").ids == plain.encode("a red house").ids
    assert made.encode("a <extra_id_1> house").ids[1] == len(PIECES) + SENTINELS - 2
    assert t5_tokenizer(tmp_path / "spiece.model", {}).get_vocab_size() == len(PIECES) + 100


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"\x0a\x0e", InputError, "expected a SentencePiece model, found"),
        (b"", InputError, "found no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", InputError, "expected a SentencePiece model"),
        ({"model_type": 2}, UnsupportedError, "expected T5's unigram pieces, first <pad>, </s>, <unk>"),
        ({"pieces": ("<unk>", "<s>", "</s>", "a")}, UnsupportedError, "found <unk>, <s>, </s>; save a tokenizer.json"),
    ],
)
def test_other_files_are_refused(content: Any, error: type[QuadError], says: str, tmp_path: Path) -> None:
    file = tmp_path / "spiece.model"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        spiece(file, **content)
    with pytest.raises(error) as caught:
        t5_tokenizer(file, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="extra_ids of 0 to 1000"):
        t5_tokenizer(spiece(file), {"extra_ids": "many"})
