"""Errors are one line with the right exit code, and stdout belongs to results."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

import quad
from quad.cli.main import app, explain
from quad.core import errors

RUNNER = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paint"], "No such command 'paint'"),
        (["run"], "Missing argument 'BUNDLE'"),
        (["run", "b", "-o", "x.png"], "Missing option '--task'"),
        (["run", "b", "--task", "removal", "-o", "x.jpg"], "expected a file name that ends in .png, found 'x.jpg'"),
        (["run", "b", "--task", "removal", "-o", "x.png", "--steps", "0"], "Invalid value for '--steps'"),
        (["run", "b", "--task", "removal", "-o", "x.png", "--adapter", "ink:x"], "--adapter: expected NAME or NAME:WEIGHT"),
        (["build", "toyland", "-o", "b", "--adapter", "ink"], "--adapter: expected NAME=PATH"),
        (["inspect"], "Missing argument"),
        (["inspect", "x", "--colour"], "No such option"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.UnsupportedError("x"), 1),
        (errors.VerificationError("x"), 3),
        (errors.CompatibilityError("x"), 3),
        (errors.BackendError("x"), 1),
    ],
)
def test_exit_codes_follow_the_error_tree(error: errors.QuadError, code: int) -> None:
    assert explain(error) == ("quad: x", code)


def test_a_fault_of_quad_is_one_line_that_says_so() -> None:
    line, code = explain(ValueError("two\nlines"))
    assert code == 1
    assert line.startswith("quad: a fault of quad itself, ValueError: two lines;")


def test_debug_shows_the_traceback_before_the_line() -> None:
    plain = RUNNER.invoke(app, ["inspect", "nowhere"])
    debug = RUNNER.invoke(app, ["inspect", "nowhere", "--debug"])
    assert plain.exit_code == debug.exit_code == 1
    assert "Traceback" not in plain.stderr
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)


@pytest.mark.parametrize(("words", "verbs"), [([], ("build", "run", "inspect")), (["publish"], ("init", "add", "revoke"))])
def test_a_group_alone_shows_its_help_that_names_every_verb(words: list[str], verbs: tuple[str, ...]) -> None:
    done = RUNNER.invoke(app, words)
    assert all(verb in done.stdout for verb in verbs)
    assert (done.exit_code, done.stderr) == (2, "")


def test_help_of_a_verb_is_no_mistake() -> None:
    assert RUNNER.invoke(app, ["run", "--help"]).exit_code == 0


def test_python_m_quad_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "quad", "inspect", "nowhere"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("quad: nowhere: expected a bundle directory")


def test_the_version_is_shown() -> None:
    done = RUNNER.invoke(app, ["--version"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"quad {quad.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["inspect", "nowhere"], ["error"]),
        (["inspect", "-v", "nowhere"], ["error", "info"]),
        (["--verbose", "inspect", "nowhere"], ["error", "info"]),
        (["-vv", "inspect", "nowhere"], ["error", "info", "debug"]),
        (["-v", "inspect", "nowhere", "-v"], ["error", "info", "debug"]),
    ],
)
def test_verbose_anywhere_in_the_call_shows_the_log_on_stderr(words: list[str], shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def log_and_fail(_: Path) -> None:
        for level in (logging.ERROR, logging.INFO, logging.DEBUG):
            logging.getLogger("quad.room").log(level, "said at %s", logging.getLevelName(level).lower())
            logging.getLogger("library").log(level, "of a library")
        raise errors.InputError("x")

    monkeypatch.setattr("quad.cli.inspect._facts", log_and_fail)
    done = RUNNER.invoke(app, words)
    *logged, last = done.stderr.splitlines()
    assert (done.exit_code, done.stdout, last) == (1, "", "quad: x")
    assert [line.rpartition(" ")[2] for line in logged] == shown
    assert not logging.getLogger("quad").handlers


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_modules_are_read_is_no_traceback(tmp_path: Path) -> None:
    """It comes when the command line's own module is asked for."""
    hook = """
        import os, signal, sys
        def strike(event, arguments):
            if event == "import" and arguments[0] == "quad.cli.main":
                os.kill(os.getpid(), signal.SIGINT)
        sys.addaudithook(strike)
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(hook))
    path = os.pathsep.join((str(tmp_path), str(Path(quad.__file__).parents[1])))
    command = [sys.executable, "-m", "quad", "--version"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest itself may run with it ignored
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
