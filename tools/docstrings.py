"""Docstrings say the thing: none opens with a question word.

Run it as `python tools/docstrings.py DIRECTORY...`; it exits 1 when one opens with a word of `RIDDLES`, and says which.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

RIDDLES = ("What", "Which", "Who", "Whom", "Whose")


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """Name, line and text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), getattr(node, "lineno", 1), text


def main(roots: list[str]) -> int:
    files = sorted(path for root in roots for path in Path(root).rglob("*.py"))
    broken = [
        f"{path}:{line}: {name}: {text.splitlines()[0][:60]}..."
        for path in files
        for name, line, text in docstrings(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        if text.split(maxsplit=1)[0].rstrip(",:") in RIDDLES
    ]
    print("\n".join(broken) if broken else "docstrings: none opens with a question word")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src"]))
