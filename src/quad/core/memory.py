"""How much memory this process has held, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

# glibc's malloc.h: what `mallopt` takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
_USUAL = {_MMAP_MAX: 2**16, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _ARENA_MAX: 0}  # where glibc's own adaptation ends
_APART = {_MMAP_THRESHOLD: 2**24, _TRIM_THRESHOLD: 2**26}  # the latter as usual: a threshold that is set ends the adaptation
_reuses = Event()  # set inside `freed_memory_reused`
# Of memory that is resident and not in use: more goes back to the system, looked at every few seconds.
MOST_UNUSED_BYTES, _LOOK_S = 2**30, 5.0

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_ram_bytes() -> int:
    """Largest resident size of this process so far, or since `reset_peak`, bytes.

    Linux's getrusage carries the parent's peak over into a started process (execve folds it in), so VmHWM is read there.
    """
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Start the peak anew from what is resident now; where the system cannot, the old peak stays."""
    with suppress(OSError):
        _RESET.write_text("5", encoding="ascii")


def release_memory() -> None:
    """Give freed memory back to the system where the allocator would keep it (glibc); elsewhere nothing happens.

    Of a U-Net of Stable Diffusion 1.5's size, mapped from its file, 39 MB of 39 stayed with the process until asked for.
    """
    with suppress(OSError, AttributeError, TypeError):  # TypeError: a system whose libraries have no common handle
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def freed_memory_reused() -> Iterator[None]:
    """While the block runs, freed memory is had again without asking the system (glibc), `MOST_UNUSED_BYTES` of it at most for long.

    Tensors of some megabytes come and go with every layer, and the system clears each page that it hands out: a fifth of a guided call.
    Unbounded, what lies free between blocks in use grows: at Stable Diffusion 1.5's size to 4 of 9 GB.
    """
    end = Event()
    watcher = Thread(target=_bound_unused, args=(end,), name="quad-memory", daemon=True)
    _tell_allocator(_KEPT)
    _reuses.set()
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()
        _reuses.clear()
        _tell_allocator(_USUAL)
        release_memory()


def _bound_unused(end: Event) -> None:
    """Give memory back whenever more than `MOST_UNUSED_BYTES` are resident and not in use."""
    while not end.wait(_LOOK_S):
        if unused_bytes() > MOST_UNUSED_BYTES:
            release_memory()


class _AllocatorFigures(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes, and counts of blocks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def unused_bytes() -> int:
    """Resident memory of this process's own that is not in use, and what did not come from the allocator (glibc); elsewhere 0."""
    with suppress(OSError, AttributeError, TypeError):  # as in `release_memory`; mallinfo2 is there from glibc 2.33 on
        ask = ctypes.CDLL(None).mallinfo2
        ask.restype = _AllocatorFigures
        figures = ask()
        own = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("RssAnon:"))
        return int(own.split()[1]) * 1024 - int(figures.uordblks) - int(figures.hblkhd)
    return 0


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """While the block runs, memory of 16 MB and more goes back to the system as soon as it is freed (glibc).

    glibc keeps what lies below a block in use: tensors that come and go leave holes behind, and the next ones lie above them. A block of
    `freed_memory_reused` around it goes before.
    """
    if _reuses.is_set():
        yield
        return
    _tell_allocator(_APART)
    try:
        yield
    finally:
        _tell_allocator(_USUAL)


def _tell_allocator(options: dict[int, int]) -> None:
    with suppress(OSError, AttributeError, TypeError):  # as in `release_memory`
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def memory_block(size: int, *, large_pages: bool = True) -> mmap.mmap:
    """Memory of zeros that goes back to the system whole.

    Args:
        size: bytes.
        large_pages: where there are such: three are had sooner than 1600. Without them a page that nobody writes to takes no memory.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE if large_pages else mmap.MADV_NOHUGEPAGE)
    return block
