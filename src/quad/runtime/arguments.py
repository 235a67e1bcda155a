"""Arguments as a caller's code gives them: one of another type is refused by its name, before any work."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from quad.core.errors import UsageError, mismatch

Kind = TypeVar("Kind")
MOST_THREADS = 4096  # more than any machine has cores, and what every engine's own numbers hold


def whole_number(name: str, value: Any, least: int | None = None, instead: str = "give one") -> int:
    """A whole number of Python or NumPy, as one of Python, which does not overflow.

    Args:
        least: the smallest that is allowed.
        instead: what to do where it is none.

    Raises:
        UsageError: it is something else, or smaller.
    """
    expected = "a whole number" if least is None else f"a whole number, {least} or more"
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (least is not None and whole < least):
        raise UsageError(mismatch(name, expected, repr(value), instead))
    return whole


def thread_count(name: str, value: Any, instead: str = "leave it out for all cores") -> int:
    """A number of threads that an engine can be told.

    Raises:
        UsageError: it is something else.
    """
    threads = whole_number(name, value, 1, instead)
    if threads > MOST_THREADS:
        raise UsageError(mismatch(name, f"at most {MOST_THREADS}", threads, instead))
    return threads


def number(value: Any) -> float:
    """A value as float() reads it; NaN where it is no number."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def one_of(name: str, value: Any, choices: Sequence[str], instead: str = "choose one of these") -> str:
    """One of several words.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(mismatch(name, f"one of {', '.join(choices)}", repr(value), instead))
    return value


def text(name: str, value: Any) -> str:
    """A string.

    Raises:
        UsageError: it is something else.
    """
    return _instance(name, value, str, "a string", "give one")


def texts(name: str, value: Any) -> list[str]:
    """One string, or several, as a list.

    Raises:
        UsageError: it is something else.
    """
    listed = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    return [text(name, each) for each in listed]


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UsageError: it is something else.
    """
    return _instance(name, value, bool, "True or False", "give one of these")


def _instance(name: str, value: Any, kind: type[Kind], expected: str, instead: str) -> Kind:
    if not isinstance(value, kind):
        raise UsageError(mismatch(name, expected, repr(value), instead))
    return value


def check_callback(name: str, value: Any) -> None:
    """Refuse what cannot be called, and is not None.

    Raises:
        UsageError: it is such a thing.
    """
    if value is not None and not callable(value):
        raise UsageError(mismatch(name, "a function", repr(value), "give one, or leave it out"))


def path_of(name: str, value: Any) -> Path:
    """A path of the file system.

    Raises:
        UsageError: it is none, or one that no system can have.
    """
    if isinstance(value, str | os.PathLike) and isinstance(path := os.fspath(value), str):
        try:
            if b"\0" not in os.fsencode(path):
                return Path(path)
        except UnicodeEncodeError:
            pass
    raise UsageError(mismatch(name, "a path", repr(value), "give one"))
