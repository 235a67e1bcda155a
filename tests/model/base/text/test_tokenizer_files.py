"""A tokenizer made of CLIP's files gives the ids of transformers' CLIPTokenizer, through the tokenizer that the device uses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import CLIPTokenizer

from quad.core.errors import InputError, UnsupportedError
from quad.model.base.text.tokenizer_files import read_tokenizer
from quad.runtime.conditioning.tokenizer import Tokenizer
from tests.model.clip_vocabulary import BEGIN, END, TEXT, write_clip_files

PROMPTS = 1200
RARE = (
    "", " ", "\n\t  \r\n", "A" * 400, "cat " * 120, "it's we've I'm they'll he'd you're", "DON'T SHOUT", "5 cats, 3.14 dogs!", "!", "!!!",
    "caf\u00e9 cafe\u0301 \u1e9b\u0323", "\u212b \u00c5 A\u030a", "\u0130stanbul \u01c5 \u03a3\u03b1\u03c3", "\u4e00\u4e8c \ud55c\uad6d",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\x00\x01\x7f\x85\x9f",
    "a\u200bb\u00a0c\u2003d\u3000e\ufeff", END, f"a {END} b {BEGIN}", "<|ENDOFTEXT|>", "<|endoftext|",
    "\u0e01\u0e33 \u0939\u093f\u0928\u094d",
    "\u2460 \u00b2 \u00bd \u216b", "\U000e0041", "\uffff\ufffe", "''s 's's", "__init__ #tag @me (best quality:1.2), [x|y]",
)  # fmt: skip


def _prompts() -> list[str]:
    """Random ones: words, letters of all scripts, and joins of both, some far too long."""
    rng = np.random.default_rng(0)
    words = np.array([*TEXT.split(), *RARE])
    texts = [*RARE]
    while len(texts) < PROMPTS:
        kind, count = rng.integers(4), int(rng.integers(1, 40))
        if kind == 0:
            text = " ".join(rng.choice(words, count))
        elif kind == 1:
            codes = rng.integers(0, 0x2FFFF, count)
            text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        elif kind == 2:
            text = "".join(chr(code) for code in rng.integers(0, 0x250, count))
        else:
            gaps = rng.choice([" ", "", "\t\n", ", "], count)
            shouted = [word.upper() if rng.random() < 0.3 else word for word in rng.choice(words, count)]
            text = "".join(word + gap for word, gap in zip(shouted, gaps, strict=True))
        texts.append(text)
    return texts


def _config(tokens: int) -> SimpleNamespace:
    return SimpleNamespace(max_position_embeddings=77, vocab_size=tokens, pad_token_id=1, hidden_size=8, model_type="clip_text_model")


@pytest.mark.parametrize("pad", [END, "!"])
def test_ids_are_those_of_transformers(pad: str, tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path, pad)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    text, spec = read_tokenizer(tmp_path, _config(tokens))
    assert spec.pad_id == (0 if pad == "!" else tokens - 1)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    ours = Tokenizer(tmp_path / "tokenizer.json", spec)
    prompts = _prompts()
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
    for prompt, ids in zip(prompts, expected, strict=True):
        np.testing.assert_array_equal(ours(prompt).ids[0], ids, err_msg=repr(prompt))
    assert len({tuple(ids) for ids in expected}) > PROMPTS * 0.9


PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}


def _write(file: Path, **fields: object) -> None:
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**before, **fields}))


def _sister_files(folder: Path, tokens: int, layout: str) -> int:
    """The files of hub directories beside the vocabulary; the number of added tokens."""
    match layout:
        case "stable-diffusion-2":  # two files that disagree on the pad token
            _write(folder / "special_tokens_map.json", pad_token="!", bos_token={"content": BEGIN, **PLAIN})
            return 0
        case "textual-inversion":
            _write(folder / "added_tokens.json", **{"<ink>": tokens, "<ink>_1": tokens + 1})
            return 2
    marks = {BEGIN: tokens - 2, END: tokens - 1, "<ink>": tokens, "<rain>": tokens + 1}
    table = {f"{index}": {"content": name, **PLAIN, "special": name != "<ink>"} for name, index in marks.items()}
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    _write(folder / "tokenizer_config.json", added_tokens_decoder=table, **special)
    _write(folder / "special_tokens_map.json", pad_token="!")  # not read where there is a table
    return 2


@pytest.mark.parametrize(("layout", "pad"), [("stable-diffusion-2", 0), ("textual-inversion", None), ("table", None)])
def test_files_beside_the_vocabulary_mean_what_they_mean_to_transformers(layout: str, pad: int | None, tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    more = _sister_files(tmp_path, tokens, layout)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    text, spec = read_tokenizer(tmp_path, _config(tokens + more))
    ours = Tokenizer(text, spec)
    assert spec.pad_id == theirs.pad_token_id == (tokens - 1 if pad is None else pad)
    prompts = ["a cat by <ink>", "a<INK>cat <ink>_1 <rain>", "a !cat!", *_prompts()[:200]]
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
    for prompt, ids in zip(prompts, expected, strict=True):
        np.testing.assert_array_equal(ours(prompt).ids[0], ids, err_msg=repr(prompt))
    assert (tokens in expected[0]) == (more > 0)


def test_a_tokenizer_json_alone_pads_as_clip_does(tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    text, _ = read_tokenizer(tmp_path, _config(tokens))
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_tokenizer(tmp_path, _config(tokens))[1].pad_id == tokens - 1


def test_a_prompt_too_long_keeps_its_end(tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    text, spec = read_tokenizer(tmp_path, _config(tokens))
    encoded = Tokenizer(text, spec)("cat " * 200)
    assert (encoded.ids[0, 0], encoded.ids[0, -1]) == (tokens - 2, tokens - 1)
    assert encoded.dropped == 125
    assert (encoded.ids[0, 1:-1] < tokens - 2).all()


def test_a_tokenizer_json_goes_first_and_is_kept_as_it_is(tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    text, _ = read_tokenizer(tmp_path, _config(tokens))
    (tmp_path / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "vocab.json").unlink()
    again, spec = read_tokenizer(tmp_path, _config(tokens))
    assert (again, spec.pad_id) == (text + "\n", tokens - 1)


@pytest.mark.parametrize(
    ("file", "content", "error", "says"),
    [
        ("vocab.json", None, InputError, "expected tokenizer.json, or vocab.json and merges.txt, found none"),
        ("merges.txt", None, InputError, "expected merges.txt, found none"),
        ("vocab.json", "{", InputError, "vocab.json: expected JSON"),
        ("vocab.json", '{"a</w>": 0, "b": 0}', InputError, "expected a different number for each token"),
        ("vocab.json", '{"a</w>": 0, "b": "1"}', InputError, "expected a different number for each token"),
        ("vocab.json", '{"\u0120a": 0}', UnsupportedError, "expected CLIP's vocabulary, with </w> at a word's end"),
        ("vocab.json", '{"a</w>": 0}', InputError, "expected the special tokens, found no '<|startoftext|>'"),
        ("merges.txt", "t h e\n", InputError, "expected two tokens on every line, found 't h e'"),
        ("merges.txt", "#version: 0.2\nqq zz\n", InputError, "merges.txt: expected pairs of tokens in vocab.json"),
        ("tokenizer_config.json", '{"pad_token": "<pad>"}', InputError, "expected the special tokens, found no '<pad>'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', InputError, "expected added tokens and their ids"),
        ("added_tokens.json", '{"<ink>": "many"}', InputError, "expected added tokens and their ids"),
        ("added_tokens.json", '{"<ink>": 3}', InputError, "expected added token '<ink>' as number"),
    ],
)
def test_broken_files_are_refused(file: str, content: str | None, error: type[Exception], says: str, tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(error) as caught:
        read_tokenizer(tmp_path, _config(tokens))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tokens = write_clip_files(tmp_path)
    message = f"found {tokens} tokens, the last of number {tokens - 1}; use the model's own tokenizer"
    with pytest.raises(InputError, match=f"at most {tokens - 1} tokens .*, {message}"):
        read_tokenizer(tmp_path, _config(tokens - 1))
    assert json.loads((tmp_path / "vocab.json").read_text())[END] == tokens - 1
