from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.cli.options import named_paths, read_recipe, stated_adapters, weighted_names
from quad.core.errors import InputError, UsageError
from quad.core.sampling import AdapterDefaults

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)


@given(st.lists(NAMES, unique=True, max_size=5))
def test_named_paths_keep_order_and_everything_after_the_first_equals_sign(names: list[str]) -> None:
    found = named_paths("--adapter", [f"{name}=dir/{name}=1.safetensors" for name in names])
    assert list(found.items()) == [(name, Path(f"dir/{name}=1.safetensors")) for name in names]


@pytest.mark.parametrize("value", ["ink", "ink=", "=ink", "a/b=c", "../x=y", ".hidden=y", ""])
def test_a_value_that_is_no_name_and_path_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--adapter: expected"):
        named_paths("--adapter", [value])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="ink twice"):
        named_paths("--adapter", ["ink=a", "ink=b"])
    with pytest.raises(UsageError, match="ink twice"):
        weighted_names("--adapter", ["ink", "ink:0.5"])


def test_words_behind_a_path() -> None:
    values = ["lcm=a,b=1.safetensors", "x=dir/x,sampler=lcm:4,guidance=1,trigger=in ink, inkstyle", "y=dir,2/y,rank=8,guidance=-0.5"]
    with pytest.raises(UsageError, match="found b=; choose one of these"):
        stated_adapters("--adapter", values)
    stated = stated_adapters("--adapter", ["lcm=a.safetensors,rank=640", *values[1:]])
    paths, defaults = stated.paths, stated.defaults
    assert stated.ranks == {"lcm": 640, "y": 8}
    assert paths == {"lcm": Path("a.safetensors"), "x": Path("dir/x"), "y": Path("dir,2/y")}
    assert defaults == {
        "x": AdapterDefaults(sampler="lcm:4", guidance=1.0, trigger_words="in ink, inkstyle"),
        "y": AdapterDefaults(guidance=-0.5),
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x=a,samplr=lcm:4", "sampler=, guidance=, trigger=, rank= behind it, found samplr=;"),
        ("x=a,sampler=lcm,sampler=euler", "sampler twice"),
        ("x=a,rank=8", "behind it, found rank=;"),
        ("x=a,rank=-8", "a whole number as rank, found '-8'"),
        ("x=a,rank=" + "9" * 5000, "a whole number as rank"),
        ("x=a,guidance=much", "found {'guidance': 'much'}; write ,guidance=1"),
        ("x=a,guidance=nan", "a finite guidance"),
        ("x=a,sampler=abacus", "found 'abacus'"),
        ("x=a,sampler=" + "e" * 99, "short words"),
        ("x=,sampler=lcm", "found 'x='"),
        (",sampler=lcm", "NAME=PATH"),
    ],
)
def test_words_behind_a_path_that_are_none(value: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        stated_adapters("--adapter", [value], ranked="found rank" not in says)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_weights_are_read_back(weights: dict[str, float]) -> None:
    assert weighted_names("--adapter", [f"{name}:{weight!r}" for name, weight in weights.items()]) == weights


def test_a_name_alone_weighs_one() -> None:
    assert weighted_names("--adapter", ["ink"]) == {"ink": 1.0}


@pytest.mark.parametrize("value", ["ink:heavy", "ink:nan", "ink:inf", "ink:", "ink.qpack:", ":1", "ink=0.8"])
def test_a_weight_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(UsageError):
        weighted_names("--adapter", [value])


class _Options(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    precision: str | None = None
    max_rank: int | None = None


def test_a_recipe_is_read_by_long_names(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('precision = "float"\nmax-rank = 4\n')
    assert read_recipe(file, _Options) == _Options("float", 4)


@pytest.mark.parametrize(("text", "says"), [("colour = 1", "`colour`"), ('max-rank = "x"', "Expected `int | null`, got `str`")])
def test_an_unknown_option_or_a_wrong_type_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_recipe(file, _Options)


@pytest.mark.parametrize("text", [None, "precision ="])
def test_a_recipe_that_is_none_is_an_input_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "r.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError):
        read_recipe(file, _Options)
