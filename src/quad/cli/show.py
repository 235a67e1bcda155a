"""How verbs show things: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from quad.core.errors import one_line
from quad.core.processes import speaks
from quad.core.progress import Progress as StageProgress
from quad.core.progress import silent

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]


def _bar(console: Console) -> Progress:
    """Drawn on a terminal only, and gone when done: an error stays the one line on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps, None where nobody knows; yields the function that takes one step."""
    with _bar(Console(file=sys.stderr)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def stage_bar() -> Iterator[StageProgress]:
    """A bar of named stages, or one line a stage where stderr is a file; yields `f(stage that begins, share done in [0, 1])`.

    Of several processes the main one alone shows it.
    """
    if not speaks():
        yield silent
        return
    console = Console(file=sys.stderr)
    with _bar(console) as bar:
        task = bar.add_task("start", total=1.0)

        def begin(stage: str, share: float) -> None:
            bar.update(task, description=stage, completed=share)
            if not console.is_terminal:
                print(f"{share:4.0%} {stage}", file=sys.stderr, flush=True)

        yield begin


def note(text: str) -> None:
    """One line for the user's attention that is not an error."""
    print(f"note: {one_line(text)}", file=sys.stderr)


def result(value: Any, as_json: bool, lines: list[str]) -> None:
    """Show a result: the object itself as JSON, or lines for people.

    Args:
        value: JSON-like objects or msgspec structs; finite numbers only.
        as_json: whether `--json` was given.
        lines: the same for a reader.

    Of several processes the main one alone shows it.
    """
    if not speaks():
        return
    print(json.dumps(msgspec.to_builtins(value), allow_nan=False) if as_json else "\n".join(lines))


def size(n_bytes: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    value, units = float(n_bytes), ["kB", "MB", "GB"]
    if value < 1000:
        return f"{n_bytes} B"
    while units[1:] and value >= 999_950:
        value, units = value / 1000, units[1:]
    return f"{value / 1000:.1f} {units[0]}"
