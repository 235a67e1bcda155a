"""One training: where it lives, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Run:
    """Where a training lives, how much longer than the two-core recipe it is, and on how many threads."""

    out: Path
    scale: float = 1.0
    threads: int = 2

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.out.mkdir(parents=True, exist_ok=True)
