"""Standard output and standard error that cannot be written to: a full disk, a closed descriptor, a pipe that nobody reads any more.

Results belong on standard output: where it does not take them the command has failed, and says so in one line; where its reader has gone,
as `head` does, it ends without a word and with the code that the system's own programs have. Nothing hangs on what is said on standard
error: the work goes on without it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from quad.core.errors import BackendError

READER_GONE = 141  # 128 and the number of SIGPIPE
_DESCRIPTORS = 3  # input, output, error


class ResultNotShown(BackendError):
    """Standard output took no result."""


class ReaderGone(ResultNotShown):
    """Nobody reads standard output any more, which is no fault of anybody's."""

    exit_code = READER_GONE


def open_missing_descriptors() -> None:
    """Put nothing where a standard descriptor is closed, so that no file that is opened later takes its number, and a library's words."""
    for number in range(_DESCRIPTORS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """While the block runs, errors of standard output are `ResultNotShown`, and those of standard error nothing; at its end all is written.

    Raises:
        ResultNotShown: standard output could not be written to.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Results(before[0])), cast(TextIO, _Messages(before[1]))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


class _Messages:
    """A text stream, or None where its descriptor is closed, whose errors go to `_failed`."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._failed(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _failed(self, error: OSError) -> None:
        """Send the rest of its buffer nowhere: the interpreter would try again as it ends, and say so."""
        with suppress(OSError, ValueError, AttributeError):
            number, nowhere = cast(TextIO, self._stream).fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


class _Results(_Messages):
    def _failed(self, error: OSError) -> None:
        super()._failed(error)
        if error.errno == errno.EPIPE:
            raise ReaderGone("standard output: nobody reads it any more") from error
        reason = "disk full" if error.errno == errno.ENOSPC else error.strerror
        raise ResultNotShown(f"standard output: cannot write ({reason}); the result is not shown, what was done before stays") from error
