"""The arrays that are bound to a graph's slot inputs, and an adapter's file on its way to becoming them.

All of a file is hashed the first time that it is read, in a bundle when that is opened. Later it is taken to be the same as long as the
system says so (`Identity`): a file that was replaced or written to since is hashed again, and so is one that was changed so shortly before
that the clock could hide another change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import VerificationError, mismatch
from quad.core.manifest import AdapterManifest
from quad.core.memory import memory_block
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.core.storage.pack import check_digest, content_digest, pack_manifest
from quad.core.storage.stable_file import Identity
from quad.core.storage.tensor_file import TensorFile, copy_tensors, map_tensors, open_header
from quad.core.tensor_names import parse
from quad.runtime.adapters.block_weights import Weight

_LOG = logging.getLogger(__name__)

TEXT_PREFIX = f"{TEXT_ENCODER}."
MakeRoom = Callable[[int], None]

# What an array and an engine's tensor over it take beside its numbers: 0.8 kB measured, and what an allocator loses.
BESIDE_BYTES = 1_000
_ALIGNED_BYTES = 64  # where each copy begins: a line of the processor's cache


class Buffers(dict[str, NDArray[Any]]):
    """Graph input name -> array, not to be written to. Who uses the arrays holds the dict.

    Args:
        prepared: session -> these arrays as it has checked and wrapped them, so that they are bound again in a fraction of a
            millisecond; it goes with the buffers, and with the session.
    """

    __slots__ = ("__weakref__", "prepared")
    prepared: WeakKeyDictionary[Any, Any]

    def __init__(self, *arrays: Any) -> None:
        super().__init__(*arrays)
        self.prepared = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class AdapterMix:
    """The adapters of one picture, as they are bound to its graphs; one adapter alone and the base are mixes too.

    Args:
        weights: adapter name -> weight.
        notes: on what of a mix was lost.
    """

    weights: Mapping[str, Weight]
    buffers: Buffers
    notes: tuple[str, ...] = ()


def zero_buffers(slots: SlotTable) -> Buffers:
    """The zero adapter, the base bit for bit: all slot encodings are symmetric, so integer zero is zero.

    Inputs of one shape share one array; not to be written to.
    """
    shared: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
    zeros = Buffers()
    for slot in slots.slots:
        for name, shape in ((slot.a_name, slot.a_shape), (slot.b_name, slot.b_shape)):
            key = (slot.dtype, shape)
            if key not in shared:
                shared[key] = np.zeros(shape, slot.dtype)
            zeros[name] = shared[key]
    return zeros


def padded_bytes(tensors: Iterable[str], zeros: Buffers) -> int:
    """Memory of an adapter with these tensors at the slots' ranks, and what it takes to hold them; names of no slot are passed over."""
    return sum(zeros[name].nbytes + BESIDE_BYTES for name in tensors if name in zeros)


def largest_bytes(slots: SlotTable) -> int:
    """Memory of an adapter that has every slot: what is bound is as large as the slots, whatever the adapter's own rank."""
    sizes = (np.dtype(slot.dtype).itemsize * (math.prod(slot.a_shape) + math.prod(slot.b_shape)) for slot in slots.slots)
    return sum(sizes)


def check_tensors(name: str, tensors: Mapping[str, NDArray[Any]], zeros: Buffers) -> None:
    """Refuse what is no adapter for these slots: A and B come in pairs, in the slot's type, of one rank from 1 to the slot's.

    Args:
        name: the adapter's, for messages.
        tensors: as a file holds them; slots that are not among them are zero.
        zeros: the zero adapter of the slots, A and B of each in turn.

    Raises:
        VerificationError: the tensors are not what the slots digest promises.
    """
    where, names = f"adapter {name!r}", list(zeros)
    if odd := sorted(tensors.keys() - zeros.keys()):
        raise _odd(where, f"tensors of {len(names) // 2} slots", f"{odd[0]}, which is none")
    for a_name, b_name in zip(names[::2], names[1::2], strict=True):
        parts = [part for part in (a_name, b_name) if part in tensors]
        if len(parts) == 1:
            raise _odd(f"{where}, slot {parse(a_name).path}", "both A and B, or neither", f"{parts[0]} alone")
        if not parts:
            continue
        (slot_rank, *a_inner), (out, _, *b_inner) = zeros[a_name].shape, zeros[b_name].shape
        rank = len(tensors[a_name]) if tensors[a_name].ndim else 0
        if not 1 <= rank <= slot_rank:
            raise _odd(f"{where}, {a_name}", f"a rank from 1 to {slot_rank}", f"shape {tensors[a_name].shape}")
        shapes = {a_name: (rank, *a_inner), b_name: (out, rank, *b_inner)}
        for part, shape in shapes.items():
            array, dtype = tensors[part], zeros[part].dtype
            if (array.dtype, array.shape) != (dtype, shape):
                raise _odd(f"{where}, {part}", f"{dtype} {shape}", f"{array.dtype} {array.shape}")


def _odd(where: str, expected: str, actual: str) -> VerificationError:
    return VerificationError(mismatch(where, expected, actual, "pack it again with quad adapt"))


def pad(tensors: Mapping[str, NDArray[Any]], zeros: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every graph input at the slot's rank.

    Where all tensors have it, they are taken as they are, not copied. Where one is smaller, or begins where no number of its type may, all
    of them are copied into one block of memory with zeros behind the smaller ones: what they were views of is then needed no more, and the
    block goes back to the system whole.

    Args:
        tensors: graph input name -> array in the slot's dtype, of any rank up to the slot's.
        zeros: every graph input, in slot order, at the slot's rank; they stand for slots that are not there, not copied.
    """
    shapes = {name: zero.shape for name, zero in zeros.items() if name in tensors}
    if any(tensors[name].shape != shape or not tensors[name].flags.aligned for name, shape in shapes.items()):
        tensors = _grown(tensors, shapes)
    return {name: tensors.get(name, zero) for name, zero in zeros.items()}


def _grown(tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Copies of these shapes, side by side in one block."""
    places: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        places[name] = end
        end += -(-math.prod(shape) * tensors[name].itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
    block = memory_block(end)
    grown: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        grown[name] = np.ndarray(shape, tensors[name].dtype, block, places[name])
        grown[name][tuple(slice(size) for size in tensors[name].shape)] = tensors[name]
    return grown


@dataclass(kw_only=True)
class AdapterFile:
    """Where an adapter lies and what it said of itself when it was found there. The file must stay.

    Args:
        path: the pack, or the file of tensors beside an `adapter.json`.
        packed: which of the two.
        mapped: it is the device's own, to which nobody writes, and is mapped; any other is read into memory.
        hashed: which file was seen to have the manifest's digest already.
        fits: its tensors are those of the slots.
    """

    path: Path
    manifest: AdapterManifest
    packed: bool
    mapped: bool
    hashed: Identity | None = None
    fits: bool = False

    def components(self) -> list[str]:
        """The graphs that its tensors are inputs of."""
        names = open_header(self.path).entries
        return [part for part in (UNET, TEXT_ENCODER) if any((part == TEXT_ENCODER) == name.startswith(TEXT_PREFIX) for name in names)]

    def check(self, zeros: Buffers, verify: bool = True) -> None:
        """See that it fits, and that it is whole.

        Args:
            zeros: the zero adapter of the slots.
            verify: for the latter all of it is read once; False leaves that to `read`.

        Raises:
            InputError: it cannot be read.
            VerificationError: it was changed, or is no adapter for these slots.
        """
        file = self._open()
        if verify:
            self._check(file, zeros)
        else:
            check_tensors(self.manifest.name, file.tensors, zeros)

    def read(self, zeros: Buffers, make_room: MakeRoom) -> Buffers:
        """Its buffers: the file itself where all of its ranks are the slots', else a padded copy.

        Args:
            zeros: the zero adapter of the slots; it stands for slots that this one does not have.
            make_room: called with the bytes that its buffers will take, before they do.

        Raises:
            InputError, VerificationError: as `check`.
        """
        mapped = map_tensors(self.path) if self.mapped else None  # which takes no memory yet
        make_room(padded_bytes(open_header(self.path).entries if mapped is None else mapped.tensors, zeros))
        file = copy_tensors(self.path) if mapped is None else mapped
        self._check(file, zeros)
        if any(tensor.shape != zeros[name].shape for name, tensor in file.tensors.items()):
            _LOG.debug("adapter %s: padded to the slots' ranks", self.manifest.name)
        return Buffers(pad(file.tensors, zeros))

    def _open(self) -> TensorFile:
        return map_tensors(self.path) if self.mapped else copy_tensors(self.path)

    def _check(self, file: TensorFile, zeros: Buffers) -> None:
        if file.identity == self.hashed:
            file.touch()
        else:
            self._hash(file)
        if not self.fits:
            check_tensors(self.manifest.name, file.tensors, zeros)
            self.fits = True  # for good: only the same bytes get here again

    def _hash(self, file: TensorFile) -> None:
        now_ns = time_ns()
        if self.packed and pack_manifest(file.where, file.metadata) != self.manifest:
            raise VerificationError(mismatch(file.where, f"the pack that was loaded as {self.manifest.name!r}", "another", "load it again"))
        digest = content_digest(file.tensors) if self.packed else file.sha256()
        check_digest(file.where, digest, self.manifest.sha256)
        self.hashed = file.identity if file.identity.settled(now_ns) else None
