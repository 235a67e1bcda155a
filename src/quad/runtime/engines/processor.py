"""Facts about the processor that decide how an engine may compute."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_X86 = ("x86_64", "amd64")


@cache
def products_saturate(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Does this processor lose the upper bits of u8 x s8 sums; yes where nobody says that it has VNNI."""
    if platform.machine().lower() not in _X86:
        return False
    return not (cpuinfo.is_file() and "vnni" in cpuinfo.read_text(encoding="ascii", errors="replace"))
