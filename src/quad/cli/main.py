"""The `quad` command: its verbs, and errors as one line with the exit code that `quad.core.errors` gives them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from quad import __version__
from quad.cli.adapt import adapt
from quad.cli.bake import bake
from quad.cli.build import build
from quad.cli.delivery.fetch import fetch
from quad.cli.delivery.install import install
from quad.cli.delivery.list import list as list_adapters
from quad.cli.delivery.publish import app as publish
from quad.cli.delivery.rollback import rollback
from quad.cli.doctor import doctor
from quad.cli.export import export
from quad.cli.inspect import inspect
from quad.cli.measure.ablate import ablate
from quad.cli.measure.bench import bench
from quad.cli.measure.eval import eval
from quad.cli.measure.verify import verify
from quad.cli.run import run
from quad.cli.serve import serve
from quad.cli.streams import ReaderGone, ResultNotShown, guarded_streams, open_missing_descriptors
from quad.cli.studio import studio
from quad.cli.verbosity import OPTIONS as VERBOSE
from quad.cli.verbosity import level_of, logging_to_stderr
from quad.core.errors import InputError, QuadError, lack_of, mismatch
from quad.core.processes import launched_processes

DEBUG = "--debug"


def _usage_line(error: TyperException) -> str:
    """A mistake in the call, with where to read how it is done; nothing where the help itself was shown."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if not message or "\n" in message or context is None:
        return message
    return f"{context.command_path}: {message.rstrip('.')}; see {context.command_path} --help"


def explain(error: Exception) -> tuple[str, int]:
    """The line that is shown for an error, and the exit code: 1 failed, 2 wrong usage, 3 refused."""
    if isinstance(error, ReaderGone):
        return "", error.exit_code
    if isinstance(error, TyperException):
        return _usage_line(error), error.exit_code
    if isinstance(error, QuadError):
        return f"quad: {error}", error.exit_code
    if (lack := lack_of("quad", error)) is not None:
        return str(lack), lack.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"quad: {InputError(mismatch(str(error.filename), 'a path to use', error.strerror, 'check it and its permissions'))}", 1
    if isinstance(error, Abort):
        return "quad: interrupted", 1
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"quad: a fault of quad itself, {reason}; call again with {DEBUG} and report it", 1


class OneLineErrors(TyperGroup):
    """The group of verbs; it turns every exception into one line on stderr, with the traceback before it under `--debug`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        arguments = [word for word in words if word != DEBUG and word not in VERBOSE]
        code = None
        try:
            with guarded_streams(), logging_to_stderr(level_of(words)):
                code = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            code = _say(error, DEBUG in words)
        sys.exit(code or 0)


def _say(error: Exception, with_traceback: bool) -> int:
    """Show an error; its exit code."""
    line, code = explain(error)
    with suppress(ResultNotShown), guarded_streams():
        if with_traceback:
            traceback.print_exception(error)
        if line and _shows(line):
            print(line, file=sys.stderr)
    return code


def _shows(line: str) -> bool:
    """Is this the process of several that shows an error; the others end with its exit code and no word."""
    if launched_processes() == 1:
        return True
    from quad.quantize.processes.meeting import shows_failure

    return shows_failure(line)


app = typer.Typer(
    name="quad",
    cls=OneLineErrors,
    help="One frozen quantized diffusion graph, any number of LoRA tasks.",
    epilog=(
        f"Anywhere in the call, {DEBUG} shows the traceback of an error, -v or --verbose what is decided, -vv every step as well. "
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused; 141 where nobody reads its output any more."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked_for: bool) -> None:
    if asked_for:
        print(f"quad {__version__}")
        raise typer.Exit


@app.callback()
def _verbs(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the release of quad.")] = False,
) -> None:
    """A group even while it is small: `quad VERB`."""


app.command()(build)
app.command()(adapt)
app.command()(bake)
app.command()(export)
app.command()(run)
app.command()(inspect)
app.command()(eval)
app.command()(ablate)
app.command()(bench)
app.add_typer(publish, name="publish")
app.command()(fetch)
app.command()(install)
app.command()(rollback)
app.command()(list_adapters)
app.command()(serve)
app.command()(studio)
app.command()(verify)
app.command()(doctor)


def main() -> None:
    """Entry point of the `quad` script."""
    open_missing_descriptors()
    app(prog_name="quad")
