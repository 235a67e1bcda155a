"""A device's store of adapters, as `quad install` leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quad.core.digests import file_digest
from quad.core.storage.install_pointers import PACKS, Installed, Version, pack_path, write_pointer
from quad.core.storage.pack import write_pack


def install_pack(store: Path, name: str, made: tuple[Any, Any], version: int) -> Path:
    """Put a pack there and switch the name's pointer to it."""
    draft = store / "draft"
    (store / PACKS).mkdir(parents=True, exist_ok=True)
    write_pack(draft, *made)
    digest, size = file_digest(draft), draft.stat().st_size
    path = draft.rename(pack_path(store, digest))
    write_pointer(store, Installed(name, Version(version, digest, size)))
    return path
