"""Bindings say what they hold: how many of all bound names are words that could hold anything.

Run it as `python tools/names.py DIRECTORY...`; it exits 1 when more than `MOST` of all bindings are generic, and says where they are.
A binding is a name that a function, loop, `with`, comprehension, assignment or parameter gives to a value. A name counts as generic when
it is one of `GENERIC`, with or without underscores around it.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST = 0.015
WORDS = """found made kept own one given wanted held some seen done told said known heard asked taken there here then how what which who
    others these those thing things stuff whole rest got had gone came come went"""
GENERIC = frozenset(WORDS.split())


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and line of every binding: targets of any kind, parameters, `except ... as`, captures of `match`."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno


def generic(name: str) -> bool:
    return name.strip("_") in GENERIC


def main(roots: list[str]) -> int:
    total, places = 0, []
    for path in sorted(path for root in roots for path in Path(root).rglob("*.py")):
        for name, line in bindings(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            total += 1
            if generic(name):
                places.append((name, f"{path}:{line}"))
    share = len(places) / max(total, 1)
    summary = f"names: {len(places)} of {total} bindings are generic, {share:.2%} (at most {MOST:.1%})"
    if share > MOST:
        print("\n".join(f"{where}: {name}" for name, where in places))
        print(", ".join(f"{name} {count}" for name, count in Counter(name for name, _ in places).most_common(12)))
    print(summary)
    return 1 if share > MOST else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src"]))
