"""Constructors with many fields are called by keyword: reordering a field must not change what a call means.

Run it as `python tools/keyword_only.py DIRECTORY...`; it exits 1 and names every dataclass or struct of `FIELDS` fields or more without
`kw_only=True`, and every `__init__` of as many parameters that may be given by position.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

FIELDS = 4


def _keywords(node: ast.ClassDef) -> list[ast.keyword]:
    """Keywords of the class statement and of its decorators."""
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return [*node.keywords, *(keyword for call in calls for keyword in call.keywords)]


def _is_record(node: ast.ClassDef) -> bool:
    """Is it a dataclass or a msgspec struct, whose constructor is made from its fields."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) or any(
        ast.unparse(base).rpartition(".")[2] in ("Struct", "NamedTuple") for base in node.bases
    )


def _fields(node: ast.ClassDef) -> list[str]:
    """Names of the fields that the constructor takes by position: those before `_: KW_ONLY`."""
    lines = takewhile(lambda line: not (isinstance(line, ast.AnnAssign) and ast.unparse(line.annotation).endswith("KW_ONLY")), node.body)
    return [
        line.target.id
        for line in lines
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and "ClassVar" not in ast.unparse(line.annotation)
        and not (line.value is not None and "init=False" in ast.unparse(line.value))
    ]


def violations(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every constructor that takes `FIELDS` or more by position."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        by_keyword = any(keyword.arg == "kw_only" and ast.unparse(keyword.value) == "True" for keyword in _keywords(node))
        if _is_record(node) and len(_fields(node)) >= FIELDS and not by_keyword:
            yield node.lineno, node.name
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                positional = [*method.args.posonlyargs, *method.args.args][1:]
                if len(positional) >= FIELDS:
                    yield method.lineno, f"{node.name}.__init__"


def main(roots: list[str]) -> int:
    files = sorted(path for root in roots for path in Path(root).rglob("*.py"))
    broken = [
        f"{path}:{line}: {name} takes {FIELDS} or more by position: make them keyword-only"
        for path in files
        for line, name in violations(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    ]
    print("\n".join(broken) if broken else f"keyword_only: every constructor of {FIELDS} fields or more is called by keyword")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src"]))
