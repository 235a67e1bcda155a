"""Memory that is freed and had again, and what goes back to the system."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

import pytest

from quad.core.memory import freed_memory_reused, release_memory

BYTES = 60_000_000


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
