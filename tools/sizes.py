"""Small rooms: no file over 600 lines, no function over 60; a note above 250 lines.

Run it as `python tools/sizes.py DIRECTORY...`; it exits 1 when a limit is broken.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FILE_LINES_WANTED, FUNCTION_LINES = 600, 250, 60


def functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Name, first line and length in lines of every function, decorators left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def check_file(path: Path) -> tuple[list[str], list[str]]:
    """What breaks a limit, and what is only larger than wanted."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    broken = [f"{path}: {lines} lines, at most {FILE_LINES}: split it"] if lines > FILE_LINES else []
    notes = [f"note: {path}: {lines} lines, wanted {FILE_LINES_WANTED}"] if FILE_LINES_WANTED < lines <= FILE_LINES else []
    for name, line, length in functions(ast.parse(text, str(path))):
        if length > FUNCTION_LINES:
            broken.append(f"{path}:{line}: {name} has {length} lines, at most {FUNCTION_LINES}: split it")
    return broken, notes


def main(roots: list[str]) -> int:
    files = sorted(path for root in roots for path in Path(root).rglob("*.py"))
    broken: list[str] = []
    for path in files:
        over, notes = check_file(path)
        broken += over
        print("\n".join(notes), end="\n" if notes else "")
    print("\n".join(broken) if broken else f"sizes: {len(files)} files within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src", "tests", "tools"]))
