"""Bytes on disk: of a bundle, and of one binary per adapter in its place."""

from __future__ import annotations

from collections.abc import Sequence

from quad.evaluate.bench.results import RomBytes, SeparateBytes
from quad.runtime.bundle import Bundle

COUNTS = (1, 2, 10, 100)


def rom_bytes(bundle: Bundle) -> RomBytes:
    """Bytes on disk of a bundle."""
    entries = bundle.manifest.files
    shared = sum(entry.size_bytes for file, entry in entries.items() if not file.startswith("adapters/"))
    graphs = {name: sum(entries[file].size_bytes for file in part.files) for name, part in bundle.manifest.components.items()}
    adapters = {
        name: sum(entry.size_bytes for file, entry in entries.items() if file.startswith(f"adapters/{name}/"))
        for name in bundle.manifest.adapters
    }
    return RomBytes(shared=shared, components=graphs, adapters=adapters, separate=separate_bytes(shared, graphs["unet"], adapters))


def separate_bytes(shared: int, unet: int, adapters: dict[str, int], counts: Sequence[int] = COUNTS) -> list[SeparateBytes]:
    """One graph for all against one binary per adapter, with so many adapters of this bundle's mean size.

    A separate binary has its LoRA merged in, at the same precision: it is as large as the graph alone. (The paper counts the LoRA once
    more.)

    Args:
        shared: bytes that all tasks share, the U-Net's among them.
        unet: bytes of the U-Net.
        adapters: name -> bytes.
        counts: numbers of adapters to compare, beside that of this bundle.
    """
    if not adapters:
        return []
    mean = sum(adapters.values()) / len(adapters)
    rows = []
    for n in sorted({*counts, len(adapters)}):
        one_for_all, pipelines, unets = shared + n * mean, float(n * shared), float(shared - unet + n * unet)
        rows.append(
            SeparateBytes(
                adapters=n, one_for_all=one_for_all, separate=pipelines, separate_unet=unets,
                ratio=pipelines / one_for_all, ratio_unet=unets / one_for_all,
            )
        )  # fmt: skip
    return rows
