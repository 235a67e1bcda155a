"""What a build is asked for, and what it gives back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import BundleManifest
from quad.quantize.calibrate import CalibrationSample

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BuildRequest:
    """One build.

    Args:
        model: diffusers directory.
        adapters: name -> LoRA file or directory, in the order they will be listed.
        output: the bundle directory to write.
        samples: calls of the pipeline that the ranges must hold; those of adapters that are not built are left out.
        name: the bundle's name, that of `output` by default.
        target, precision: see `quad.compile.targets`.
        lora_bits: 16 or 8.
        max_rank: rank of every slot; None gives each the largest among the adapters.
        allow_unused_keys: pass over LoRA keys that match nothing.
        bias_correction: take the mean error of rounded weights back in the biases.
    """

    model: Path
    adapters: Mapping[str, Path]
    output: Path
    samples: Sequence[CalibrationSample] = ()
    name: str | None = None
    target: str = "cpu"
    precision: str = "w8a16"
    lora_bits: int = 16
    max_rank: int | None = None
    allow_unused_keys: bool = False
    bias_correction: bool = True

    def check(self) -> None:
        """Refuse values outside their range before anything is loaded.

        Raises:
            UsageError: an adapter's name cannot be a file name, or a number is none of those allowed.
        """
        for name in self.adapters:
            if not _NAME.fullmatch(name):
                raise UsageError(mismatch("--adapter", "a name of letters, digits, dot, dash and underscore", repr(name), "choose another"))
            if name == "base":
                raise UsageError(mismatch("--adapter", "a name other than base", repr(name), "choose another"))
        if self.lora_bits not in (8, 16):
            raise UsageError(mismatch("--lora-bits", "16 or 8", self.lora_bits, "choose one of these"))
        if self.max_rank is not None and self.max_rank < 1:
            raise UsageError(mismatch("--max-rank", "1 or more", self.max_rank, "choose a larger one"))


@dataclass(frozen=True)
class BuildResult:
    """What was built, and what it took.

    Args:
        profile: `mode` and `anchor`, and how many encodings of each kind.
        placement: of the U-Net: `nodes`, `on_target`, `on_cpu`, `partitions`; the same per component in `components`.
        stages: seconds per stage.
        smoke: component -> case -> relative error of the shipped graph against the float network.
    """

    bundle: Path
    manifest: BundleManifest
    seconds: float
    peak_ram_bytes: int
    profile: Mapping[str, Any]
    placement: Mapping[str, Any]
    stages: Mapping[str, float]
    smoke: Mapping[str, Mapping[str, float]]
    rom_bytes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of `quad build --json`."""
        return {
            "bundle": str(self.bundle),
            "seconds": self.seconds,
            "peak_ram_bytes": self.peak_ram_bytes,
            "profile": dict(self.profile),
            "placement": dict(self.placement),
            "stages": dict(self.stages),
            "smoke": {component: dict(cases) for component, cases in self.smoke.items()},
            "rom_bytes": dict(self.rom_bytes),
            "tasks": sorted(self.manifest.tasks),
            "adapters": list(self.manifest.adapters),
        }
