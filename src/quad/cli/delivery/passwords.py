"""The password of key files: from a file, the environment or a prompt, never from the command line, where others can read it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from quad.core.errors import InputError, UsageError, mismatch

VARIABLE = "QUAD_PASSWORD"
_LONGEST_FILE = 4096


def read_password(file: Path | None, new: bool) -> bytes:
    """The password.

    Args:
        file: its first line, where one is given; else the environment is asked, then the user.
        new: the user has to write it twice.

    Raises:
        InputError: the file is none. UsageError: there is nobody to ask.
    """
    if file is not None:
        if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
            raise InputError(mismatch("--password-file", "a small file with the password", str(file), "check the path"))
        return file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    password = os.environ.get(VARIABLE)
    if password is None:
        if not sys.stdin.isatty():
            raise UsageError(mismatch("password", f"--password-file or {VARIABLE}", "neither, and no terminal to ask", "give one of them"))
        password = str(typer.prompt("Password of the keys", hide_input=True, confirmation_prompt=new, err=True))
    return os.fsencode(password)
