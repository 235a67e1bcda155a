"""Stands in for a system that does not let a place be read: tests run as root too, whom no permission stops."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def hide(monkeypatch: pytest.MonkeyPatch, place: Path, number: int = errno.EACCES) -> None:
    """From now on neither the place nor anything below it can be listed, looked at or opened; the place itself still has a status."""

    def refusing(real: Callable[..., Any], itself: bool) -> Callable[..., Any]:
        def call(path: Any = ".", *options: Any, **named: Any) -> Any:
            where = Path(os.fsdecode(path)).absolute() if isinstance(path, str | bytes | os.PathLike) else None
            if where is not None and (place in where.parents or (itself and where == place)):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *options, **named)

        return call

    for module, names, itself in (
        (os, ("listdir", "scandir", "open", "unlink", "remove"), True),
        (os, ("stat", "lstat"), False),
        (io, ("open",), True),
        (builtins, ("open",), True),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refusing(getattr(module, name), itself))
