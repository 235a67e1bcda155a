"""Independent work dealt to the processes of one launch: a piece is computed whole by one of them, and all get all results in order.

What is added up of the results is then added in one order, whoever computed them: one process and many give the same bits. A process
takes the next piece when it is free, so that a slow machine holds nobody up by more than a piece.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from quad.core import errors
from quad.core.errors import BackendError, QuadError
from quad.core.processes import alone, is_main, process_count, process_number
from quad.quantize.observe.side_by_side import lanes, side_by_side
from quad.quantize.processes.meeting import Meeting, meeting

Piece = TypeVar("Piece")
T = TypeVar("T")
Packed = tuple[Any, Mapping[str, NDArray[Any]]]  # a value of JSON, and arrays by name
_VALUE = "/"  # the JSON, as an array among the others: no tensor is called so


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How a result travels: nothing of it may be lost on the way."""

    encode: Callable[[T], Packed]
    decode: Callable[[Packed], T]


def json_codec(kind: type[T] | Any) -> Codec[T]:
    """Of what msgspec writes as JSON and reads again as `kind`; floats keep all their bits."""
    return Codec(lambda value: (msgspec.to_builtins(value), {}), lambda packed: msgspec.convert(packed[0], kind))


def _unpacked(packed: Packed) -> Packed | None:
    return (packed[0][0], packed[1]) if packed[0] else None


ARRAYS = Codec[Mapping[str, NDArray[Any]]](lambda arrays: (None, arrays), lambda packed: packed[1])
PACKED = Codec[Packed | None](lambda piece: ([], {}) if piece is None else ([piece[0]], piece[1]), _unpacked)


def dealt(compute: Callable[[Piece], T], pieces: Iterable[Piece], codec: Codec[T], at_once: int = 1) -> Iterator[T]:
    """`compute` of every piece, by whichever process, in the order of the pieces.

    Every process must come here with the same pieces. In one process alone they are computed here, one after the other.

    Args:
        compute: of the piece and of what all processes have alike, and changes none of it.
        codec: of the results.
        at_once: pieces that a process takes and computes side by side.

    Raises:
        QuadError: a piece failed, in every process the same one. BackendError: a process is gone.
    """
    if process_count() == 1:
        yield from map(compute, pieces)
        return
    meet = meeting()
    work = _Work(meet, pieces)
    given, left = 0, True
    while left:
        mine = work.draw(at_once)
        left = len(mine) == at_once
        with alone():
            outcomes = side_by_side(lambda number: _outcome(compute, work.pieces[number], codec), mine)
        for number, outcome in zip(mine, outcomes, strict=True):
            meet.put(work.name(number), outcome)
        while given < len(work.pieces) and (not left or meet.there(work.name(given))):
            yield _result(meet, work.name(given), codec)
            given += 1
    meet.let_go(work.step, [work.name(number) for number in range(given)])


def together(compute: Callable[[Piece], T], pieces: Sequence[Piece], codec: Codec[T]) -> list[T]:
    """`compute` of pieces that may run side by side, on all cores of all processes; see `dealt`."""
    return side_by_side(compute, pieces) if process_count() == 1 else list(dealt(compute, pieces, codec, lanes()))


def from_each(value: T, codec: Codec[T]) -> list[T]:
    """The values of all processes, in the order of their numbers.

    Raises:
        BackendError: a process is gone.
    """
    if process_count() == 1:
        return [value]
    meet = meeting()
    step = meet.next_step()
    names = [f"{step}/{number}" for number in range(process_count())]
    meet.put(names[process_number()], _packed(codec.encode(value)))
    values = [_result(meet, name, codec) for name in names]
    meet.let_go(step, names)
    return values


@final
class _Work(Generic[Piece]):
    """The pieces of one step, asked for as they are drawn."""

    def __init__(self, meet: Meeting, pieces: Iterable[Piece]) -> None:
        self.step, self.pieces = meet.next_step(), list[Piece]()
        self._meet, self._asked_for = meet, iter(pieces)

    def name(self, number: int) -> str:
        return f"{self.step}/{number}"

    def draw(self, most: int) -> list[int]:
        """Numbers of pieces that this process is to compute; fewer than `most` where no more are left, and then `pieces` has all."""
        drawn: list[int] = []
        for _ in range(most):
            number = self._meet.draw(self.step)
            self.pieces += islice(self._asked_for, max(0, number + 1 - len(self.pieces)))
            if number >= len(self.pieces):
                break
            drawn.append(number)
        return drawn


def shared(make: Callable[[], T], codec: Codec[T]) -> T:
    """The result of the main process, which works alone for that while, everywhere.

    Raises:
        QuadError: it failed. BackendError: the process is gone.
    """
    if process_count() == 1:
        return make()
    meet = meeting()
    step = meet.next_step()
    name = f"{step}/0"
    if is_main():
        try:
            with alone():
                made = make()
        except QuadError as error:
            meet.put(name, _failure(error))
            raise
        meet.put(name, _packed(codec.encode(made)))
    else:
        made = _result(meet, name, codec)
    meet.let_go(step, [name])
    return made


def _outcome(compute: Callable[[Piece], T], piece: Piece, codec: Codec[T]) -> bytes:
    """A packed result, or the error that came of it, as bytes."""
    try:
        return _packed(codec.encode(compute(piece)))
    except QuadError as error:
        return _failure(error)


def _packed(packed: Packed, *words: str) -> bytes:
    value, arrays = packed
    text = np.frombuffer(json.dumps([value, *words]).encode(), np.uint8)
    return save({**{name: np.asarray(array, order="C") for name, array in arrays.items()}, _VALUE: text})


def _failure(error: QuadError) -> bytes:
    return _packed((None, {}), type(error).__name__, str(error))


def _result(meet: Meeting, name: str, codec: Codec[T]) -> T:
    arrays = load(meet.take(name))
    value, *failed = json.loads(arrays.pop(_VALUE).tobytes())
    if failed:
        raise getattr(errors, failed[0], BackendError)(failed[1])
    return codec.decode((value, arrays))
