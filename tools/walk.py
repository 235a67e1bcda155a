"""Files and functions of `src/quad` that one piece of data enters on its way: `python tools/walk.py BUNDLE`.

Three walks, traced by a profiler:

- run: all of `quad run`, from the command line over the opened bundle to the PNG;
- picture: a prompt on its way to a PNG, `pipe(prompt)` and `images[0].save` of an opened pipeline;
- adapter: an adapter on its way from its file to the graph's bound buffers, `set_adapters(name)` of one that was not read yet.

`--list` names what was entered, in the order of the first entry.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import quad
from quad.runtime import QuadPipeline

ROOT = Path(quad.__file__).parent
# Scopes that the interpreter makes; they count to the function that they stand in.
_INNER = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")


def trace(walk: Callable[[], object]) -> list[tuple[str, str]]:
    """File and qualified name of every function under `src/quad` that `walk` enters, on any thread, in order of the first entry."""
    codes: dict[CodeType, None] = {}

    def profiler(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # no body of a module or class
            codes.setdefault(frame.f_code)

    threading.setprofile(profiler)
    sys.setprofile(profiler)
    try:
        with contextlib.suppress(SystemExit):  # the command line's way to end
            walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    functions = {}
    for code in codes:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and code.co_name not in _INNER:
            functions[path.relative_to(ROOT).as_posix(), code.co_qualname] = None
    return list(functions)


def walk_run(bundle: str) -> list[tuple[str, str]]:
    """The command line, the bundle, the prompt, the PNG."""
    from quad.cli.main import main as quad_main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        words = ["run", bundle, "--task", "text-to-image", "--prompt", "a red circle", "--seed", "1", "-o", f"{folder}/picture.png"]
        sys.argv = ["quad", *words]
        return trace(quad_main)


def walk_picture(bundle: str) -> list[tuple[str, str]]:
    """A prompt on its way to a PNG."""
    pipe = QuadPipeline.from_pretrained(bundle)
    with tempfile.TemporaryDirectory() as folder:
        return trace(lambda: pipe("a red circle", seed=1).images[0].save(Path(folder) / "picture.png"))


def walk_adapter(bundle: str) -> list[tuple[str, str]]:
    """An adapter on its way from its file to what the graphs are bound to."""
    pipe = QuadPipeline.from_pretrained(bundle)
    return trace(lambda: pipe.set_adapters(pipe.adapters[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="directory of a bundle with one adapter at least")
    parser.add_argument("--list", action="store_true", help="name every function")
    options = parser.parse_args()
    for name, walk in (("run", walk_run), ("picture", walk_picture), ("adapter", walk_adapter)):
        functions = walk(options.bundle)
        if options.list:
            print("\n".join(f"  {file}: {function}" for file, function in functions))
        print(f"{name}: {len({file for file, _ in functions})} files, {len(functions)} functions")


if __name__ == "__main__":
    main()
