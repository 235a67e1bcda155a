"""CLIP's tokenizer, which every Stable Diffusion has and no one-file checkpoint brings: its pairs ship with the package.

`data/clip_merges.txt.gz` holds the 48894 pairs of `bpe_simple_vocab_16e6.txt` that CLIP uses, one a line, under the MIT licence beside it;
the vocabulary follows from them. Source: Radford et al. 2021 (CLIP), `simple_tokenizer.py`.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from quad.core.errors import InputError, mismatch
from quad.core.manifest import TextSpec
from quad.model.base.text.tokenizer_files import clip_pairs

_PAIRS = Path(__file__).with_name("data") / "clip_merges.txt.gz"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
# Bytes that print stand for themselves, in this order; the others follow as letters from 256 on.
_PRINTED = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> number, and the pairs in the order in which they are joined."""
    lines = gzip.decompress(_PAIRS.read_bytes()).decode("utf-8").split("\n")
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    others = [byte for byte in range(256) if byte not in _PRINTED]
    letters = [*map(chr, _PRINTED), *(chr(256 + index) for index in range(len(others)))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs), _BEGIN, _END]
    return {word: number for number, word in enumerate(words)}, pairs


def checkpoint_tokenizer(path: Path, config: Any, pad: str) -> tuple[str, TextSpec]:
    """The tokenizer of Stable Diffusion as JSON text, and the text encoder's input.

    Args:
        path: of the checkpoint, for messages.
        config: of its text encoder.
        pad: token that fills a prompt up.

    Raises:
        InputError: the text encoder has fewer tokens.
    """
    vocab, pairs = clip_vocabulary()
    if int(config.vocab_size) < len(vocab):
        raise InputError(
            mismatch(f"{path}", f"a text encoder of CLIP's {len(vocab)} tokens", config.vocab_size, "give a diffusers directory")
        )
    special = {role: {"content": word, **_FLAGS} for role, word in (("bos_token", _BEGIN), ("eos_token", _END), ("unk_token", _END))}
    _, tokenizer = clip_pairs(_PAIRS, vocab, pairs, {**special, "pad_token": pad}, {})
    length, hidden = int(config.max_position_embeddings), int(config.hidden_size)
    return tokenizer.to_str(), TextSpec(length=length, pad_id=vocab[pad], hidden=hidden, first_vector_id=int(config.vocab_size))
