"""Option values with a grammar of their own: `NAME=PATH` and `NAME:WEIGHT`, and the recipe file."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from quad.core.errors import InputError, UsageError, mismatch

T = TypeVar("T")
LARGEST_RECIPE = 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _checked_name(option: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(mismatch(option, "a name of letters, digits, '_', '-' and '.'", repr(name), "choose another name"))
    return name


def _unique(option: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(mismatch(option, "each name once", f"{', '.join(twice)} twice", "leave one out"))


def named_paths(option: str, values: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` values, in the order given.

    Raises:
        UsageError: a value has no `=`, an unfit name, or the name of another one.
    """
    pairs = []
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and path):
            raise UsageError(mismatch(option, "NAME=PATH", repr(value), f"write {option} ink=ink.safetensors"))
        pairs.append((_checked_name(option, name), Path(path)))
    _unique(option, [name for name, _ in pairs])
    return dict(pairs)


def weighted_names(option: str, values: Sequence[str]) -> dict[str, float]:
    """`NAME` or `NAME:WEIGHT` values, in the order given; a weight is 1 where none is said.

    Raises:
        UsageError: a weight is no finite number, or a name is unfit or given twice.
    """
    pairs = []
    for value in values:
        name, _, weight = value.partition(":")
        try:
            number = float(weight or 1)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(mismatch(option, "NAME or NAME:WEIGHT", repr(value), f"write {option} ink:0.7"))
        pairs.append((_checked_name(option, name), number))
    _unique(option, [name for name, _ in pairs])
    return dict(pairs)


def read_recipe(path: Path, kind: type[T]) -> T:
    """A recipe: a TOML file of options by their long names, as in `lora-bits = 8`.

    Args:
        kind: a msgspec struct with the options and their types.

    Raises:
        InputError: the file is missing or no TOML.
        UsageError: an option in it is unknown, or of a wrong type.
    """
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST_RECIPE):
            raise InputError(mismatch(str(path), "a recipe file", "no plain file, or a large one", "check the path"))
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise InputError(mismatch(str(path), "a recipe file", error.strerror or "none", "check the path")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(mismatch(str(path), "TOML", str(error), "mend the file")) from error
    except msgspec.ValidationError as error:
        raise UsageError(mismatch(str(path), "options of this verb by their long names", str(error), "mend the file")) from error
