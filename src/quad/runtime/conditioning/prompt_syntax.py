r"""Prompts as users of A1111, Forge and ComfyUI write them, into pieces of text with weights.

| written | read as |
|---|---|
| `(word)` | weight times 1.1; nested, times 1.1 for each pair |
| `(word:1.2)` | weight times 1.2 |
| `[word]` | weight divided by 1.1 |
| `\(` `\)` `\[` `\]` `\\` | the character itself |
| `BREAK` | what follows begins a new chunk of tokens |

A bracket that is not closed counts to the prompt's end; one that was not opened is text. Round and square ones are counted apart.
Source: the manual of AUTOMATIC1111's stable-diffusion-webui, "Attention/emphasis".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from quad.core.errors import UsageError, mismatch

PromptSyntax = Literal["a1111", "plain"]
SYNTAXES: tuple[PromptSyntax, ...] = get_args(PromptSyntax)
EMPHASIS = 1.1
# Nobody means more, and what is multiplied by itself a thousand times is no number any more.
MOST_WEIGHT = 1000.0
_SCANNER = re.compile(
    r"""(?P<escape>\\[()\[\]\\]?)
      | (?P<open>[(\[])
      | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
      | (?P<close>[)\]])
      | [^\\()\[\]:]+
      | :""",
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
# What A1111 takes out of a prompt before it reads it, and what changes the prompt between steps.
_TAG = re.compile(r"<(?:lora|lyco|hypernet):([^<>:]+)(?::([^<>]*))?>")
_BRACKETED = re.compile(r"\[([^\[\]]*)\]")
_PAIRS = {")": "(", "]": "["}
_FACTORS = {"(": EMPHASIS, "[": 1 / EMPHASIS}


@dataclass(frozen=True)
class PromptPart:
    """Some text of a prompt, and how strongly it counts."""

    text: str
    weight: float = 1.0


Block = list[PromptPart]  # what stands between two BREAKs


def parse_prompt(prompt: str, syntax: PromptSyntax = "a1111") -> list[Block]:
    """The parts of a prompt between its BREAKs, neighbours of one weight joined; plain text is one part as it stands.

    Raises:
        UsageError: a weight beyond 1000.
    """
    if syntax == "plain":
        return [[PromptPart(prompt)]] if prompt else [[]]
    tokens = list(_SCANNER.finditer(prompt))
    return _blocks(_weighted(tokens, _factors(tokens)))


def without_tags(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt without tags such as `<lora:NAME:1>`, and a line about each piece of the syntax that quad does not do."""
    notes = [
        f"prompt: {tag[0]} chooses no adapter here and was taken out; use --adapter or set_adapters()" for tag in _TAG.finditer(prompt)
    ]
    prompt = _TAG.sub("", prompt)
    if editing := next((match for match in _BRACKETED.finditer(prompt) if _is_editing(match[1])), None):
        notes.append(f"prompt: {editing[0]!r} does not change the prompt between steps here; it was read as text in brackets")
    return prompt, tuple(notes)


def _is_editing(inside: str) -> bool:
    """Whether square brackets hold alternatives, `a|b`, or words with a step, `a:b:0.5`."""
    last = inside.rstrip()[-1:]
    return "|" in inside or (":" in inside and (last == "." or last.isdecimal()))


def _factors(tokens: Sequence[re.Match[str]]) -> dict[int, float]:
    """Index of each bracket that counts -> the factor that it brings in, or takes out again."""
    factors: dict[int, float] = {}
    unclosed: dict[str, list[int]] = {"(": [], "[": []}
    for index, token in enumerate(tokens):
        if bracket := token["open"]:
            unclosed[bracket].append(index)
            factors[index] = _FACTORS[bracket]
        elif token["weight"] and unclosed["("]:
            factors[unclosed["("].pop()] = float(token["weight"])
            factors[index] = 1.0
        elif token["close"] and unclosed[_PAIRS[token["close"]]]:
            unclosed[_PAIRS[token["close"]]].pop()
            factors[index] = 1.0
    return factors


def _weighted(tokens: Sequence[re.Match[str]], factors: dict[int, float]) -> Iterator[PromptPart]:
    """The text of a prompt, piece by piece; of escapes the character alone."""
    products: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    for index, token in enumerate(tokens):
        if index not in factors:
            weight = products["("][-1] * products["["][-1]
            if not abs(weight) <= MOST_WEIGHT:
                raise UsageError(mismatch("prompt", f"weights up to {MOST_WEIGHT:g}", f"{weight:g}", "use fewer brackets"))
            yield PromptPart(token[0][1:] if token["escape"] else token[0], weight)
        elif bracket := token["open"]:
            products[bracket].append(products[bracket][-1] * factors[index])
        else:
            products[_PAIRS[token["close"] or ")"]].pop()


def _blocks(parts: Iterator[PromptPart]) -> list[Block]:
    """Split at BREAKs and joined where the weight stays."""
    blocks: list[Block] = [[]]
    for part in parts:
        pieces = _BREAK.split(part.text)
        for count, piece in enumerate(pieces):
            if count:
                blocks.append([])
            # White space beside BREAK belongs to it.
            text = piece.lstrip() if count else piece
            text = text.rstrip() if count < len(pieces) - 1 else text
            block = blocks[-1]
            if text and block and block[-1].weight == part.weight:
                block[-1] = PromptPart(block[-1].text + text, part.weight)
            elif text:
                block.append(PromptPart(text, part.weight))
    return blocks
