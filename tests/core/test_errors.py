"""What the machine lacks is told as such, and nothing else is."""

from __future__ import annotations

import errno

import pytest

from quad.core.errors import BackendError, lack_of


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "enough memory"),
        (OSError(errno.EMFILE, "Too many open files"), "enough files that may be open"),
        (ValueError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), "enough memory"),
        (RuntimeError("can't start new thread"), "enough memory for a thread"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error: Exception, says: str) -> None:
    lack = lack_of("picture", error)
    assert isinstance(lack, BackendError)
    assert str(lack).startswith(f"picture: expected {says}, found too little; ")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), RuntimeError("x"), ValueError("memory")])
def test_what_is_wrong_is_no_lack(error: Exception) -> None:
    assert lack_of("picture", error) is None
