"""A lock that is given in the order of asking."""

from __future__ import annotations

from collections import deque
from threading import Lock
from types import TracebackType


class Turns:
    """One at a time, first come first served: a thread that asks again and again cannot keep another one waiting, as it can with `Lock`."""

    def __init__(self) -> None:
        self._own = Lock()
        self._taken = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self._own:
            if not self._taken:
                self._taken = True
                return
            call = Lock()
            call.acquire()
            self._waiting.append(call)
        try:
            call.acquire()
        except BaseException:  # an interrupt: who does not enter must not keep the turn
            self._give_up(call)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._own:
            if self._waiting:
                self._waiting.popleft().release()  # handed over: it stays taken
            else:
                self._taken = False

    def _give_up(self, call: Lock) -> None:
        with self._own:
            if call in self._waiting:
                self._waiting.remove(call)
                return
        self.__exit__(None, None, None)  # it was given meanwhile
