"""A prompt's syntax: the examples of A1111's manual, laws over random prompts, and what is told of the rest."""

from __future__ import annotations

import re
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.core.errors import UsageError
from quad.runtime.conditioning.prompt_syntax import PromptPart, parse_prompt, without_tags

PLAIN = st.text(st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"]), max_size=30).filter(lambda text: "BREAK" not in text)
WEIGHTED = [
    ("a (word) here", [("a ", 1.0), ("word", 1.1), (" here", 1.0)]),
    ("((word))", [("word", 1.21)]),
    ("[word]", [("word", 1 / 1.1)]),
    ("(word:1.5)", [("word", 1.5)]),
    ("(word:0)", [("word", 0.0)]),
    ("(word: -.5 )", [("word", -0.5)]),
    (r"a \(word\) \[here\] \\", [(r"a (word) [here] \ "[:-1], 1.0)]),
    ("(open to the end", [("open to the end", 1.1)]),
    ("a) b] c:1.2) :) 10:30", [("a) b] c:1.2) :) 10:30", 1.0)]),
    ("(over [lap) ped]", [("over ", 1.1), ("lap", 1.0), (" ped", 1 / 1.1)]),
    ("(a)(b) c", [("ab", 1.1), (" c", 1.0)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ],
    ),
]


@pytest.mark.parametrize(("prompt", "parts"), WEIGHTED)
def test_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    (block,) = parse_prompt(prompt)
    assert [part.text for part in block] == [text for text, _ in parts]
    assert [part.weight for part in block] == pytest.approx([weight for _, weight in parts])


def test_break_ends_a_block_at_any_depth() -> None:
    blocks = parse_prompt("BREAK a (b BREAK c:1.5) BREAKFAST")
    assert [[part.text for part in block] for block in blocks] == [[], ["a ", "b"], ["c", " BREAKFAST"]]
    assert blocks[2][0].weight == 1.5


@given(PLAIN)
def test_text_without_syntax_is_one_part_as_it_stands(text: str) -> None:
    assert parse_prompt(text) == parse_prompt(text, "plain") == ([[PromptPart(text)]] if text else [[]])


@given(st.text(max_size=30).filter(lambda text: "BREAK" not in text))
def test_escaped_text_means_itself(text: str) -> None:
    escaped = re.sub(r"([()\[\]\\])", r"\\\1", text)
    assert parse_prompt(escaped) == parse_prompt(text, "plain")


@given(
    PLAIN.filter(lambda text: text and not re.search(r":\s*[\d.+-]+\s*\Z", text)),
    st.integers(0, 40),
    st.floats(-3, 3).map(lambda w: round(w, 3)),
)
def test_nested_weights_multiply(text: str, depth: int, weight: float) -> None:
    ((part,),) = parse_prompt("(" * depth + f"({text}:{weight:f})" + ")" * depth)
    assert part == PromptPart(text, pytest.approx(weight * 1.1**depth))


@given(st.text("ab()[]:1.\\ ", max_size=40))
def test_nothing_that_is_no_syntax_is_lost(prompt: str) -> None:
    letters = "".join(part.text for block in parse_prompt(prompt) for part in block)
    assert [c for c in letters if c in "ab"] == [c for c in prompt if c in "ab"]


def test_a_weight_beyond_all_use_is_refused() -> None:
    with pytest.raises(UsageError, match="weights up to 1000"):
        parse_prompt("(" * 5000 + "a")


def test_tags_and_editing_are_told() -> None:
    text, notes = without_tags("a cat <lora:ink:0.8> in [spring:autumn:0.5], (red|blue), [dog:fox]")
    assert text == "a cat  in [spring:autumn:0.5], (red|blue), [dog:fox]"
    assert ["<lora:ink:0.8>" in notes[0], "[spring:autumn:0.5]" in notes[1]] == [True, True]
    assert without_tags("a [cat] (dog:1.2) [10:30 clock]") == ("a [cat] (dog:1.2) [10:30 clock]", ())


@pytest.mark.parametrize("prompt", ["[" + ":" * 500 + "1" * 500 + " " * 500, " " * 20_000, ":" + "1" * 20_000, "[" * 9000 + "|"], ids=len)
def test_no_prompt_takes_long(prompt: str) -> None:
    """A request may bring any; patterns that try every way to split it took 12 seconds for the first, minutes for one of 4000."""
    begin = perf_counter()
    text, _ = without_tags(prompt)
    parse_prompt(text.replace("[" * 9000, "["))
    assert perf_counter() - begin < 2
