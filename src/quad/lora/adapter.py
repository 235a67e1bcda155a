"""An adapter as floats: module path to two matrices, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's update `B A`: `a (r, in[, kh, kw])`, `b (out, r[, 1, 1])`, float32, the scale inside b; equal to itself alone."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True, kw_only=True)
class FloatAdapter:
    """One task's LoRA: module path to matrices, its largest rank, and the digest of the file it came from.

    Args:
        energy: module path to the share of its update's sum of squares that the matrices keep; modules that are as in the file are absent.
        notes: what was done to the file's weights, a line each.
        embeddings: words that the file teaches the text encoder -> vectors `(n, width)`.
    """

    name: str
    weights: dict[str, LowRank]
    rank: int
    digest: str
    energy: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The adapter as a build reports it."""
        return {"rank": self.rank, "notes": list(self.notes), "energy": dict(self.energy)}
