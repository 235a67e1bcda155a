"""Arguments of every type, for what a caller's code can reach."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from quad.core.errors import QuadError

ANYTHING: tuple[Any, ...] = (
    None, "x", "", b"x", 1.5, -1, 0, True, 10**30, float("nan"), [], ["x"], [None], {}, {"a": 1}, object(), np.array([1, 2]), "a\0b",
    "\ud800", "x" * 300, np.float32(2), set(),
)  # fmt: skip


def _arguments(function: Callable[..., Any]) -> Iterator[str]:
    """Names that can be given, but for `self`, and what nobody but the runtime itself makes."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = ("self", "cls", "pipe", "bundle", "clock", "options", "texts", "requests")
    return (name for name, each in inspect.signature(function).parameters.items() if each.kind not in kinds and name not in own)


def try_all(function: Callable[..., Any], beside: dict[str, Any]) -> None:
    """Give each argument each value: the call ends well, or with an error of quad's own.

    Args:
        beside: what it needs beside the one that is tried.
    """
    for name in _arguments(function):
        for value in ANYTHING:
            try:
                answer = function(**{**beside, name: value})
                if inspect.isgenerator(answer):
                    list(answer)
            except QuadError:
                continue
            except Exception as error:
                pytest.fail(f"{function.__qualname__}({name}={value!r}): {type(error).__name__}: {error}")
