"""Memory that is freed and had again, and what goes back to the system."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress

import pytest

from quad.core import memory
from quad.core.memory import freed_memory_reused, large_blocks_apart, release_memory, unused_bytes

BYTES = 60_000_000
LARGE = 20_000_000


def _is_glibc() -> bool:
    with suppress(AttributeError, ValueError, OSError):
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    return False


def _pages_cleared() -> int:
    """By the system, while as many bytes are written to as a large weight has."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert len(b"x" * BYTES) == BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not _is_glibc(), reason="another allocator")
def test_freed_memory_is_reused_until_it_is_released() -> None:
    pages = BYTES // os.sysconf("SC_PAGE_SIZE")
    with freed_memory_reused():
        _pages_cleared()
        assert _pages_cleared() < pages // 10
        release_memory()
        assert _pages_cleared() > pages // 2
    assert _pages_cleared() > pages // 2
    assert _pages_cleared() > pages // 2


@pytest.mark.skipif(not _is_glibc(), reason="another allocator")
def test_what_lies_unused_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LOOK_S", 0.01)
    monkeypatch.setattr(memory, "MOST_UNUSED_BYTES", unused_bytes() + BYTES)
    with freed_memory_reused():
        blocks, pins = [], []
        for _ in range(40):
            blocks.append(bytearray(b"x" * LARGE))
            pins.append(bytearray(100_000))  # above each: the allocator alone gives nothing of it back
        held = unused_bytes()
        blocks.clear()
        while unused_bytes() > held + BYTES:
            time.sleep(0.01)
    assert len(pins) == 40


def _pages_of_a_large_block() -> int:
    """Cleared by the system for a second tensor of 20 MB, behind a first one that came, was followed by another, and went."""
    first, pin = bytearray(b"x" * LARGE), bytearray(100_000)
    del first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    second = b"x" * LARGE
    assert len(second) == LARGE
    assert len(pin)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not _is_glibc(), reason="another allocator")
def test_a_large_block_goes_back_at_once_where_blocks_are_apart() -> None:
    pages = LARGE // os.sysconf("SC_PAGE_SIZE")
    with large_blocks_apart():
        assert _pages_of_a_large_block() > pages // 2
    with freed_memory_reused(), large_blocks_apart():  # what a build asked for goes before
        _pages_of_a_large_block()
        assert _pages_of_a_large_block() < pages // 10
