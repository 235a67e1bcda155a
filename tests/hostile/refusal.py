"""What it means to be refused: the right class, one printable line that says why, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.exceptions import TyperException
from typer.testing import CliRunner

from quad.cli import main
from quad.core.errors import QuadError

RUNNER = CliRunner()
LONGEST_LINE = 1500
_EXPLAIN = main.explain
_STAGE = re.compile(r" *\d+% [\w-]+")


@dataclass(frozen=True)
class Case:
    """One hostile thing.

    Args:
        write: puts it into an empty folder and gives the path that a user would name.
        error: the class that refuses it.
        says: a part of the line.
    """

    name: str
    write: Callable[[Path], Path]
    error: type[QuadError]
    says: str


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """One test per case, under its name."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("case", cases, ids=names)


def refused(error: type[QuadError], says: str, call: Callable[[], object]) -> None:
    """`call` raises exactly that kind of error, in one clear line."""
    with pytest.raises(error) as caught:
        call()
    assert caught.value.exit_code == error.exit_code
    _one_line(str(caught.value), says)


def quad_refuses(arguments: Sequence[str | Path], error: type[QuadError], says: str, out: Path | None = None) -> None:
    """The command fails with that error's exit code, one line on stderr beside its stages, nothing on stdout, nothing in `out`."""
    seen: list[Exception] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "explain", lambda found: seen.append(found) or _EXPLAIN(found))
        done = RUNNER.invoke(main.app, [str(word) for word in arguments])
    assert all(isinstance(found, error | TyperException) for found in seen), seen
    lines = [line for line in done.stderr.splitlines() if not _STAGE.fullmatch(line)]
    code = next((found.exit_code for found in seen if isinstance(found, QuadError | TyperException)), error.exit_code)
    assert (done.exit_code, done.stdout, len(lines)) == (code, "", 1), (done.exit_code, done.output)
    assert lines[0].startswith("quad"), lines[0]
    _one_line(lines[0], says)
    assert out is None or not out.exists() or not list(out.iterdir())


def quad_survives(arguments: Sequence[str | Path]) -> None:
    """A command that reads less than all of a thing may find nothing wrong with it; but then it says what it holds, and never crashes."""
    done = RUNNER.invoke(main.app, [str(word) for word in arguments])
    if done.exit_code:
        assert (done.exit_code in (1, 3), done.stdout, done.stderr.count("\n")) == (True, "", 1), done.output
        assert "a fault of quad itself" not in done.stderr, done.stderr
    else:
        assert (bool(done.stdout), done.stderr) == (True, "")


def _one_line(line: str, says: str) -> None:
    assert says in line
    assert line.isprintable(), repr(line)
    assert len(line) < LONGEST_LINE
    assert "a fault of quad itself" not in line
