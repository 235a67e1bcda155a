"""The error tree, split by who can mend it.

    QuadError                 exit 1
    |-- InputError            exit 1   the file or value that was given is wrong
    |   `-- UsageError        exit 2   the call itself is wrong: unknown task, bad option value
    |-- UnsupportedError      exit 1   well-formed, but not something quad can do
    |-- RefusedError          exit 3   given things do not belong together or are not what they claim to be
    |   |-- VerificationError exit 3   a digest, signature or format check failed
    |   `-- CompatibilityError exit 3  made for other slots, another profile or another target
    |-- BusyError             exit 1   too much is being asked for at once
    |-- StoppedError          exit 1   given up on purpose: cancelled, or its time was over
    `-- BackendError          exit 1   an engine, a toolchain or the disk failed

A message is one line: where, expected, found, what to do next. It quotes names and words of strangers: what would break the line, or
move a terminal's cursor, is spelled out, and what is too long loses its middle.
"""

from __future__ import annotations

import errno
from pathlib import Path

_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate memory")  # as libraries in C++ say it
_LONGEST, _HEAD, _TAIL = 1200, 800, 350


def one_line(text: str) -> str:
    """A text as one printable line."""
    line = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return line if len(line) <= _LONGEST else f"{line[:_HEAD]} ... {line[-_TAIL:]}"


class QuadError(Exception):
    """Root of all errors that quad raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        """Keep the message as one printable line."""
        super().__init__(one_line(message))


class InputError(QuadError):
    """The file or value that the user gave is wrong; the message says how to mend it."""


class UsageError(InputError):
    """The call is wrong: an unknown name or a value outside its range."""

    exit_code = 2


class UnsupportedError(QuadError):
    """The input is well-formed, but beyond what quad does."""


class RefusedError(QuadError):
    """Refused on purpose: running it could give wrong results."""

    exit_code = 3


class VerificationError(RefusedError):
    """A digest, a format version or a path is not what the manifest promises."""


class CompatibilityError(RefusedError):
    """Two things that were made for different slots, profiles or targets."""


class BusyError(QuadError):
    """Nothing is wrong with the call but its moment: ask again later."""


class StoppedError(QuadError):
    """It was cancelled, or could not end within its time."""


class BackendError(QuadError):
    """An engine, a toolchain or the operating system failed.

    Args:
        place: where on the disk that was, if it was one.
    """

    place: Path | None = None


def lack_of(where: str, error: BaseException) -> BackendError | None:
    """The error to tell where the machine had no memory, thread or open file to give; None where `error` tells of something else.

    Neither the input nor quad is wrong then, and the same call may go well a moment later.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or any(words in text for words in _NO_MEMORY):
        lack = "memory"
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        lack = "files that may be open"
    elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        lack = "memory for a thread"
    else:
        return None
    return BackendError(mismatch(where, f"enough {lack}", "too little", "end other programs, or try again later or with smaller pictures"))


def mismatch(where: str, expected: object, actual: object, next_step: str) -> str:
    """The one-line form of every message: where, expected, found, what to do next."""
    return f"{where}: expected {expected}, found {actual}; {next_step}"
