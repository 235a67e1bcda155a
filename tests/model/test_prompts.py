"""Text features of many random prompts against A1111's rules, written down anew beside this file."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers

from quad.core.manifest import TextSpec
from quad.model.base.modules import TextModule, share_copy
from quad.model.base.text.tokenizer_files import clip_tokenizer
from quad.model.base.text.vector_table import with_vector_table
from quad.quantize.observe.torch_session import TorchSession
from quad.runtime.conditioning.embeddings import WordVectors
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conditioning.tokenizer import Tokenizer
from tests.model.clip_vocabulary import TEXT, write_clip_files
from tests.model.prompt_rules import Rules

LENGTH, WIDTH, CHUNKS = 77, 16, 8
WORDS = TEXT.split()
_DRAWN = np.random.default_rng(1)
INVERSIONS = {
    word: _DRAWN.normal(size=(count, WIDTH)).astype(np.float32) for word, count in {"ohwx": 1, "bad hands": 5, "my-Style": 3}.items()
}


@pytest.fixture(scope="module")
def text_side(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TorchSession, Rules]:
    """Our tokenizer and text encoder, and the rules over the same files and weights."""
    folder = tmp_path_factory.mktemp("clip")
    size = write_clip_files(folder)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu",
        max_position_embeddings=LENGTH, bos_token_id=size - 2, eos_token_id=size - 1,
    )  # fmt: skip
    encoder = transformers.CLIPTextModel(config).eval()
    theirs: Any = transformers.CLIPTokenizer.from_pretrained(folder)
    encoder.final_layer_norm.bias.data += 0.5  # CLIP's hidden states have a mean; the rule is measured on it
    spec = TextSpec(length=LENGTH, pad_id=size - 1, hidden=WIDTH, first_vector_id=size)
    tokenizer = Tokenizer(clip_tokenizer(folder).to_str(), spec)
    network = TextModule(with_vector_table(share_copy(encoder)))
    session = TorchSession(network, {"input_ids": (1, LENGTH), "embeddings": (1, LENGTH, WIDTH)})
    return tokenizer, session, Rules(theirs, copy.deepcopy(encoder).double(), INVERSIONS)


def random_prompt(rng: np.random.Generator, words: int, breaks: int = 0) -> str:
    """Words, inversions, commas and escapes inside brackets of all kinds; some brackets are left open or closed twice."""
    if breaks:
        return " BREAK ".join(random_prompt(rng, words // (breaks + 1)).replace("(", "").replace("[", "") for _ in range(breaks + 1))
    pieces: list[str] = []
    for word in rng.choice([*WORDS, *[*INVERSIONS] * 3], words):
        before = rng.choice(["", "", "", "(", "((", "[", r"\(", "(["])
        after = rng.choice(["", "", "", ",", ")", "))", "]", r"\)", f":{rng.uniform(0.3, 1.8):.2f})", ":"])
        pieces.append(f"{before}{word}{after}")
    return " ".join(pieces)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_prompts(text_side: tuple[Tokenizer, TorchSession, Rules], seed: int) -> None:
    tokenizer, session, rules = text_side
    rng = np.random.default_rng(seed)
    for _ in range(15):
        prompt = random_prompt(rng, int(rng.integers(1, 12)))
        read = read_prompt(tokenizer, prompt, "a1111", WordVectors(INVERSIONS))
        assert not read.notes
        np.testing.assert_allclose(
            text_features(session, read, tokenizer.text), rules.features(prompt), rtol=1e-5, atol=1e-5, err_msg=prompt
        )


@pytest.mark.parametrize("seed", range(4))
def test_long_prompts(text_side: tuple[Tokenizer, TorchSession, Rules], seed: int) -> None:
    tokenizer, session, rules = text_side
    long = copy.copy(tokenizer)
    long.text = msgspec.structs.replace(tokenizer.text, chunks=CHUNKS)
    rng, counts = np.random.default_rng(10 + seed), set()
    for _ in range(35):
        prompt = random_prompt(rng, int(rng.integers(1, 90)), int(rng.integers(0, 2)))
        read = read_prompt(long, prompt, "a1111", WordVectors(INVERSIONS))
        assert not read.notes
        expected, features = rules.features(prompt), text_features(session, read, long.text)
        np.testing.assert_allclose(features[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5, err_msg=prompt)
        assert features.shape == (1, CHUNKS * LENGTH, WIDTH)
        assert not features[:, expected.shape[1] :].any()
        counts.add(len(read.chunks))
    assert len(counts) > 3


def test_what_does_not_fit_is_told(text_side: tuple[Tokenizer, TorchSession, Rules]) -> None:
    tokenizer, _, rules = text_side
    two = copy.copy(tokenizer)
    two.text = msgspec.structs.replace(tokenizer.text, chunks=2)
    prompt = " ".join(["the cat,"] * 80)
    read, tokens = read_prompt(two, prompt), [token for chunk in rules.chunks(prompt) for token in chunk]
    held = sum(int((chunk.ids != tokenizer.text.pad_id).sum()) - 1 for chunk in read.chunks)
    assert read.notes == (f"prompt: {len(tokens) - held} tokens beyond the first 154 were not read",)
    assert len(read.chunks) == 2
    read = read_prompt(two, "a BREAK b BREAK c", "a1111")
    assert [len(read.chunks), *read.notes] == [
        1, "prompt: BREAK begins chunk 3, which this bundle has not (--prompt-chunks); its parts were read as one",
    ]  # fmt: skip
    words = WordVectors({"many": np.ones((70, WIDTH), np.float32)})
    assert read_prompt(tokenizer, "the cat sat on the mat many many cats", words=words).notes[0].startswith("prompt: 1")


def test_a_prompt_without_syntax_is_what_it_was(text_side: tuple[Tokenizer, TorchSession, Rules]) -> None:
    tokenizer, session, _ = text_side
    rng = np.random.default_rng(5)
    for words in (0, 1, 12, 200):
        prompt = " ".join(rng.choice([*WORDS, "the cat,", "10:30"], words))
        tokens, read = tokenizer(prompt), read_prompt(tokenizer, prompt, "a1111")
        np.testing.assert_array_equal(read.chunks[0].ids, tokens.ids, strict=True)
        zeros = np.zeros((1, LENGTH, WIDTH), np.float32)
        plain = session.run({"input_ids": tokens.ids, "embeddings": zeros})
        np.testing.assert_array_equal(text_features(session, read, tokenizer.text), plain, strict=True)
        with torch.no_grad():
            expected = session._network(torch.from_numpy(tokens.ids)).numpy()
        np.testing.assert_array_equal(plain, expected, strict=True)
        assert read.notes == tokens.notes


def test_where_a_word_stands_for_vectors() -> None:
    words = WordVectors({word: np.full((1, 2), number, np.float32) for number, word in enumerate(["cat", "<cat>", "my cat", "v2"])})

    def numbers(text: str) -> list[Any]:
        return [piece if isinstance(piece, str) else int(piece[0, 0]) for piece in words.split(text)]

    assert numbers("a Cat, cats and concat") == ["a ", 0, ", cats and concat"]
    assert numbers("a <cat>, <CAT>") == ["a ", 1, ", ", 1]
    assert numbers("MY \t cat_cat") == [2, "_", 0]
    assert numbers("v2 v22") == [3, " ", 3, "2"]
    assert numbers("") == []
    assert WordVectors().split("a cat") == ["a cat"]
