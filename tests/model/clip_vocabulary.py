"""A vocabulary of CLIP's true layout, with few merges: 256 bytes, the same at a word's end, merges learnt from a text, two specials."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TEXT = """the cat sat on the mat and the other cats were painting a portrait of an astronaut riding a horse in the style of the old masters
highly detailed digital painting trending on artstation sharp focus studio lighting a photograph of a small red house by the sea at night
don't you think that's what we've been looking for i'm sure they'll like it and he'd say you're right"""


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: printable ones for themselves and first, the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(unprintable)]


def _learn(words: list[list[str]], count: int) -> list[tuple[str, str]]:
    """Byte pair encoding: join the most frequent pair, again and again."""
    merges = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [_joined(word, best) for word in words]
    return merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def write_clip_files(folder: Path, pad: str = END, merges: int = 160) -> int:
    """`vocab.json`, `merges.txt` and `tokenizer_config.json`, as on the hub; the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    learnt = _learn([[*word[:-1], word[-1] + "</w>"] for word in TEXT.split()], merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in learnt), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in learnt), encoding="utf-8")
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": {"content": BEGIN, **flags}, "eos_token": {"content": END, **flags}, "unk_token": {"content": END, **flags}}
    config = {**special, "pad_token": pad, "do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)
