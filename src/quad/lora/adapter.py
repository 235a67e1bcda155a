"""An adapter as floats: module path to two matrices, whatever file they came from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.sampling import AdapterDefaults
from quad.lora.report.trained_on import TrainedOn, prediction_notes

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's update `B A`: `a (r, in[, kh, kw])`, `b (out, r[, 1, 1])`, float32, the scale inside b; equal to itself alone."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def power(self) -> float:
        """Sum of the squares of `B A`, which is never written out."""
        a, b = (part.astype(np.float64) for part in (self.a.reshape(self.rank, -1), self.b.reshape(self.b.shape[0], -1)))
        return float(np.sum((a @ a.T) * (b.T @ b)))


@dataclass(frozen=True, kw_only=True)
class ModuleOrigin:
    """A module as its file has it.

    Args:
        kind: of adapter, by name.
        rank: 0 where nothing tells it.
        alpha: as it counts, over the rank; None where nothing says it.
        tensors: how many the file has for it.
    """

    kind: str
    rank: int
    alpha: float | None
    tensors: int


@dataclass(frozen=True, kw_only=True)
class FloatAdapter:
    """One task's LoRA: module path to matrices, its largest rank, and the digest of the file it came from.

    Args:
        energy: module path to the share of its update's sum of squares that the matrices keep; modules that are as in the file are absent.
        notes: what was done to the file's weights, a line each.
        trained_on: the base by the trainer's metadata.
        origins: module path to what the file has for it; absent where the adapter is of no file.
        embeddings: words that the file teaches the text encoder -> vectors `(n, width)`.
        own_defaults: how it is meant to be run, by the file's metadata.
    """

    name: str
    weights: dict[str, LowRank]
    rank: int
    digest: str
    energy: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    origins: Mapping[str, ModuleOrigin] = field(default_factory=dict)
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    own_defaults: AdapterDefaults = field(default_factory=AdapterDefaults)

    def defaults(self, stated: AdapterDefaults | None) -> AdapterDefaults | msgspec.UnsetType:
        """How it is meant to be run, as was stated and else as its file says; unset where neither says anything."""
        merged = (stated or AdapterDefaults()).over(self.own_defaults)
        return msgspec.UNSET if merged == AdapterDefaults() else merged

    def for_base(self, prediction: str) -> FloatAdapter:
        """With a note where the base answers with something else than the one that it was trained on.

        Args:
            prediction: the base's, `epsilon`, `v_prediction` or `sample`.
        """
        return replace(self, notes=(*prediction_notes(self.trained_on, prediction), *self.notes))

    def only(self, paths: Collection[str]) -> FloatAdapter:
        """With these modules alone."""

        def part(by_path: Mapping[str, T]) -> dict[str, T]:
            return {path: value for path, value in by_path.items() if path in paths}

        return replace(self, weights=part(self.weights), energy=part(self.energy), origins=part(self.origins))

    @property
    def error(self) -> float:
        """Norm of the part that the matrices miss over the norm of the file's change of weights, all modules together."""
        lost, whole = 0.0, 0.0
        for path, pair in self.weights.items():
            share, power = self.energy.get(path, 1.0), pair.power
            lost += power * (1 / share - 1) if share else 0.0
            whole += power / share if share else 0.0
        return math.sqrt(lost / whole) if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        """The adapter as a build reports it."""
        return {"rank": self.rank, "notes": list(self.notes), "energy": dict(self.energy), "error": self.error}
