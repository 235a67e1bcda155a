"""Bytes on disk: what a bundle takes, and what one binary per adapter would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quad.runtime.bundle import Bundle

COUNTS = (1, 2, 10, 100)


def rom_bytes(bundle: Bundle) -> dict[str, Any]:
    """Bytes on disk: what all tasks share, each graph of it, and each adapter."""
    entries = bundle.manifest.files
    shared = sum(entry.size_bytes for file, entry in entries.items() if not file.startswith("adapters/"))
    graphs = {
        name: sum(entries[file].size_bytes for file in (part.file, *part.data_files)) for name, part in bundle.manifest.components.items()
    }
    adapters = {
        name: sum(entry.size_bytes for file, entry in entries.items() if file.startswith(f"adapters/{name}/"))
        for name in bundle.manifest.adapters
    }
    return {"shared": shared, "components": graphs, "adapters": adapters, "separate": separate_bytes(shared, graphs["unet"], adapters)}


def separate_bytes(shared: int, unet: int, adapters: dict[str, int], counts: Sequence[int] = COUNTS) -> list[dict[str, float]]:
    """One graph for all against one binary per adapter, with so many adapters of this bundle's mean size.

    A separate binary has its LoRA merged in, at the same precision: it is as large as the graph alone. (The paper counts the LoRA once
    more.) `separate`: each task brings a whole pipeline, as the paper counts; `separate_unet`: they share all but the U-Net, which is
    the least that separate binaries can take.
    """
    if not adapters:
        return []
    mean = sum(adapters.values()) / len(adapters)
    rows = []
    for n in sorted({*counts, len(adapters)}):
        ours, whole, least = shared + n * mean, float(n * shared), float(shared - unet + n * unet)
        row = {"adapters": n, "one_for_all": ours, "separate": whole, "separate_unet": least}
        rows.append({**row, "ratio": whole / ours, "ratio_unet": least / ours})
    return rows
