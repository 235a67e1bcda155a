"""T5's tokenizer from a SentencePiece model, `spiece.model`, as PixArt is published: transformers' own class, given the pieces.

transformers reads such a file through the sentencepiece package; here protobuf alone is needed, which onnx brings.
Source: Kudo and Richardson 2018 (SentencePiece); Raffel et al. 2020 (T5), section 2.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.model.base.weight_files import LARGEST_CONFIG

SPIECE = "spiece.model"
_EXTRA_IDS = 100  # sentinels behind T5's vocabulary, where the config does not say
_EXTRA = re.compile(r"<extra_id_\d+>")
_UNIGRAM = 1
_AGAIN = "fetch or save the model again"
# In every T5, by number; other models have their own order and another class.
_FIRST_PIECES = ("<pad>", "</s>", "<unk>")


def t5_tokenizer(file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """T5's tokenizer.

    Args:
        file: `spiece.model`.
        config: of `tokenizer_config.json` beside it; may be empty.

    Raises:
        InputError: it is no SentencePiece model, or protobuf is not installed. UnsupportedError: it is not of T5's kind.
    """
    model = _parsed(file)
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    if model.trainer_spec.model_type != _UNIGRAM or tuple(piece for piece, _ in pieces[:3]) != _FIRST_PIECES:
        first = ", ".join(piece for piece, _ in pieces[:3])
        raise UnsupportedError(
            mismatch(f"{file}", f"T5's unigram pieces, first {', '.join(_FIRST_PIECES)}", first[:80], "save a tokenizer.json")
        )
    extra = _extra_ids(file, config)
    vocab = [*pieces, *((f"<extra_id_{number}>", 0.0) for number in range(extra - 1, -1, -1))]
    tokenizer = transformers.T5Tokenizer(
        vocab=vocab,
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap or None,
        extra_ids=extra,
        additional_special_tokens=[f"<extra_id_{number}>" for number in range(extra)],
    )
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _extra_ids(file: Path, config: Mapping[str, Any]) -> int:
    extra = config.get("extra_ids", _EXTRA_IDS)
    if type(extra) is not int or not 0 <= extra <= 1000:
        raise InputError(mismatch(f"{file.parent}", "extra_ids of 0 to 1000 in tokenizer_config.json", repr(extra)[:40], _AGAIN))
    return extra


def _parsed(file: Path) -> Any:
    """SentencePiece's ModelProto."""
    try:
        from google.protobuf.message import DecodeError
        from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model
    except ImportError as error:
        raise InputError(
            mismatch(f"{file}", "tokenizer.json, or protobuf to read this file with", f"{error}", "pip install protobuf")
        ) from error
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise InputError(mismatch(f"{file}", "a SentencePiece model", f"more than {LARGEST_CONFIG >> 20} MiB", _AGAIN))
        model = sentencepiece_model.ModelProto.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(mismatch(f"{file}", "a SentencePiece model", f"{error}".splitlines()[0], _AGAIN)) from error
    if not model.pieces:
        raise InputError(mismatch(f"{file}", "a SentencePiece model", "no pieces", _AGAIN))
    return model
