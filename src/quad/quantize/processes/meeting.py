"""The place where processes of one launch leave results for each other: the launcher's store, of bytes by name.

Nothing waits inside a library. A process looks for a name again and again, and at the same time for a failure that another one has told,
and for everyone's sign of life: so the end of one, however it came, is the end of all, in one line. The store takes messages of 8 MB;
larger values go in parts.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import cache
from typing import Any, final

from quad.core.errors import BackendError, mismatch
from quad.core.processes import launched_processes

SIGN_SECONDS, PATIENCE_SECONDS = 5.0, 300.0  # a sign of life is given so often, and missed for so long before a process counts as gone
_PART = 4 * 2**20
_SHORTEST, _LONGEST = 0.001, 0.1  # seconds between two looks
_CONNECT = timedelta(minutes=10)
_FAILURE = "quad/failure"


@final
class Meeting:
    """A process's connection to the store.

    Args:
        store: of torch, shared by all processes.
        number, count: of this process, and of all.
    """

    def __init__(self, store: Any, number: int, count: int) -> None:
        self._store, self._number, self._count = store, number, count
        self._steps = 0
        self._signs: dict[int, tuple[bytes, float]] = {}  # of each other process: the last sign, and when it was new here
        threading.Thread(target=self._give_signs, name="quad-sign-of-life", daemon=True).start()

    def next_step(self) -> str:
        """A name that every process has for the next piece of shared work: all come to the same pieces in the same order."""
        self._steps += 1
        return f"quad/{self._steps}"

    def draw(self, step: str) -> int:
        """The number of the next piece that nobody has taken yet, counted from 0.

        Raises:
            BackendError: the store is gone.
        """
        return int(self._ask("add", f"{step}/next", 1)) - 1

    def put(self, name: str, value: bytes) -> None:
        """Leave a value.

        Raises:
            BackendError: the store is gone.
        """
        parts = [value[first : first + _PART] for first in range(0, len(value), _PART)]
        for number, part in enumerate(parts):
            self._ask("set", f"{name}/{number}", part)
        self._ask("set", name, str(len(parts)))  # the last: who sees it finds all parts

    def there(self, name: str) -> bool:
        """Has a value been left.

        Raises:
            BackendError: the store is gone.
        """
        return bool(self._ask("check", [name]))

    def take(self, name: str) -> bytes:
        """A value, as soon as it is there.

        Raises:
            BackendError: another process has failed or is gone, or the store is.
        """
        pause, looked = _SHORTEST, 0.0
        while not self.there(name):
            if self.there(_FAILURE):
                raise BackendError(self._ask("get", _FAILURE).decode().partition(" ")[2])
            if time.monotonic() - looked > SIGN_SECONDS:
                self._look_for_signs()
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST)
        parts = int(self._ask("get", name))
        return b"".join(self._ask("get", f"{name}/{number}") for number in range(parts))

    def let_go(self, step: str, names: list[str]) -> None:
        """Say that this process has taken all values of a step; the last one to say so removes them."""
        if int(self._ask("add", f"{step}/taken", 1)) < self._count:
            return
        for name in names:
            parts = int(self._ask("get", name))
            for part in [*(f"{name}/{number}" for number in range(parts)), name]:
                self._ask("delete_key", part)

    def claim_failure(self, line: str) -> bool:
        """Tell the others why all end; is this the first process to do so, which shows the line."""
        mine = f"{self._number} {line}"
        return bool(self._ask("compare_set", _FAILURE, "", mine) == mine.encode())

    def _ask(self, what: str, *words: Any) -> Any:
        try:
            return getattr(self._store, what)(*words)
        except RuntimeError as error:
            gone = mismatch("accelerate launch", "its store, kept where process 0 runs", "none any more", "start all processes again")
            raise BackendError(gone) from error

    def _give_signs(self) -> None:
        number = 0
        while True:
            try:
                self._store.set(f"quad/sign/{self._number}", str(number))
            except RuntimeError:  # the store is gone, as who waits will see
                return
            number += 1
            time.sleep(SIGN_SECONDS)

    def _look_for_signs(self) -> None:
        """Raises:
        BackendError: a process has given no new sign for too long.
        """
        for other in (number for number in range(self._count) if number != self._number):
            name = f"quad/sign/{other}"
            sign = self._ask("get", name) if self.there(name) else b""
            before, since = self._signs.get(other, (None, 0.0))
            if sign != before:
                self._signs[other] = sign, time.monotonic()
            elif time.monotonic() - since > PATIENCE_SECONDS:
                lost = mismatch(f"process {other}", f"a sign of life every {SIGN_SECONDS:g} s", f"none for {PATIENCE_SECONDS:g} s",
                                "see what ended it, and start all processes again")  # fmt: skip
                raise BackendError(lost)


@cache
def meeting() -> Meeting:
    """This process's meeting; it connects at the first call.

    Raises:
        BackendError: there is no store to be reached.
    """
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    try:
        store, number, _ = next(iter(rendezvous("env://", timeout=_CONNECT)))
    except (RuntimeError, ValueError) as error:
        next_step = "start the processes with accelerate launch, on machines that reach each other"
        raise BackendError(mismatch("accelerate launch", "its store at MASTER_ADDR and MASTER_PORT", "none", next_step)) from error
    return Meeting(store, number, launched_processes())


def shows_failure(line: str) -> bool:
    """Is this process the one that shows an error which ends all of them: the first that has it, or one that reaches no other."""
    try:
        return launched_processes() == 1 or meeting().claim_failure(line)
    except BackendError:
        return True
