"""Pickled weights, which can run code when they are opened: known by the file's name, and never opened."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_REASON = "a pickled file, which can run code when it is opened"


def is_pickled(path: Path) -> bool:
    """Whether a file is named as pickled weights are, in capitals or not."""
    return path.suffix.lower() in _SUFFIXES
