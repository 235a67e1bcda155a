"""A lock that is given in the order of asking."""

from __future__ import annotations

from collections import deque
from threading import Lock
from types import TracebackType


class FairLock:
    """One at a time, first come first served: a thread that asks again and again cannot keep another one waiting, as it can with `Lock`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._locked = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._locked:
                self._locked = True
                return
            place = Lock()
            place.acquire()
            self._waiting.append(place)
        try:
            place.acquire()
        except BaseException:  # an interrupt: who does not enter must not keep the turn
            self._give_up(place)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # handed over: it stays taken
            else:
                self._locked = False

    def _give_up(self, place: Lock) -> None:
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                return
        self.__exit__(None, None, None)  # it was given meanwhile
