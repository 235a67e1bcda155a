"""The request of `quad bake`, and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import BUNDLE_FILE, BundleManifest
from quad.core.storage.directories import require_replaceable
from quad.core.storage.files import real_path
from quad.core.storage.pack import PACK_SUFFIX
from quad.export.bake.compare import MergedLikeness

WeightBits = Literal[8, 16]
_OPTION = "--adapter"


@dataclass(frozen=True, kw_only=True)
class BakeRequest:
    """Adapters to merge.

    Args:
        bundle: nothing in it is written.
        adapters: name of one of the bundle's, or path of a pack for it -> weight, any finite number.
        output: the directory of the new bundle.
        weight_bits: of changed weights whose layer computes in floats; None keeps the lattice they are on.
        engine: what both are compared with; `auto` takes the bundle's first that is installed.
    """

    bundle: Path
    adapters: Mapping[str, float]
    output: Path
    weight_bits: WeightBits | None = None
    engine: str = "auto"

    def check(self) -> None:
        """Refuse before anything is loaded.

        Raises:
            UsageError: nothing to merge, a weight that is no number, or a place inside the bundle itself.
            InputError: something else than a bundle is where the new one goes.
        """
        if not all(map(math.isfinite, self.adapters.values())):
            raise UsageError(mismatch(_OPTION, "finite weights", dict(self.adapters), "write --adapter ink:0.8"))
        if not self.used:
            found = "none" if not self.adapters else "weights of 0 alone"
            raise UsageError(mismatch(_OPTION, "an adapter to merge", found, "write --adapter ink:0.8; the bundle itself is the base"))
        if real_path(self.output).is_relative_to(real_path(self.bundle)):
            raise UsageError(mismatch("-o", "a directory outside of the bundle", self.output, "choose another place"))
        require_replaceable(self.output, BUNDLE_FILE)

    @property
    def used(self) -> dict[str, float]:
        """Adapters of a weight other than 0."""
        return {name: weight for name, weight in self.adapters.items() if weight}


def is_pack_path(name: str) -> bool:
    """Whether an adapter is named by its pack."""
    return name.endswith(PACK_SUFFIX)


@dataclass(frozen=True, kw_only=True)
class BakeResult:
    """A merged bundle.

    Args:
        weights: adapter name -> weight.
        layers: whose weights were changed.
        widened: channels whose step grew so that nothing is clipped.
        worst: largest error of a weight over the bound of its layer, half a step; at most 1.
        likeness: component -> how near its graph comes to the one with slots; without those that could not be compared.
        left_out: tasks of other adapters.
        notes: what the user should be told, a line each.
    """

    bundle: Path
    manifest: BundleManifest
    weights: Mapping[str, float]
    layers: int
    widened: int
    worst: float
    seconds: float
    likeness: Mapping[str, MergedLikeness] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of `quad bake --json`."""
        return {
            "bundle": str(self.bundle),
            "name": self.manifest.name,
            "adapters": dict(self.weights),
            "tasks": sorted(self.manifest.tasks),
            "left_out": list(self.left_out),
            "layers": self.layers,
            "widened_channels": self.widened,
            "worst_error_over_bound": self.worst,
            "likeness": {name: msgspec.to_builtins(likeness) for name, likeness in self.likeness.items()},
            "size_bytes": sum(entry.size_bytes for entry in self.manifest.files.values()),
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
