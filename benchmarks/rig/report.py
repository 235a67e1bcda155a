"""The command line and the output that every benchmark has: `--json FILE` for all figures, and a line for each figure that has a bar."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.rig.figures import Figure

RED, PLAIN = "\x1b[31m", "\x1b[0m"


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--json`.

    Args:
        doc: of the benchmark's module; its first line is shown by `--help`.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


def write_report(file: Path | None, report: Mapping[str, Any], figures: Iterable[Figure] = ()) -> None:
    """All that was measured, with the bars beside it, as JSON; nothing where no file is asked for."""
    if file is None:
        return
    bars = [figure.to_json() for figure in figures]
    facts = msgspec.to_builtins({**report, "bars": bars} if bars else report)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def print_figures(figures: Iterable[Figure]) -> None:
    """One line a figure, red on a terminal where the bar is missed."""
    for figure in figures:
        colour = "" if figure.reached or not sys.stdout.isatty() else RED
        print(f"{colour}{'reached' if figure.reached else 'MISSED '}  {figure.line()}{PLAIN if colour else ''}")
