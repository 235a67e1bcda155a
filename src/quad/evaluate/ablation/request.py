"""A request of `quad ablate`: a model, its adapters, and the rows to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quad.core.device import CPU
from quad.core.errors import InputError, UsageError, mismatch
from quad.evaluate.ablation.plan import AblationRow
from quad.evaluate.figures.quality import check_world
from quad.zoo.synthetic_adapter import SYNTHETIC


@dataclass(frozen=True, kw_only=True)
class AblationRequest:
    """A model, and the rows to measure of it.

    Args:
        adapters: name -> LoRA file or directory.
        out: the directory to write: `rows.json`, `pictures/`, `fp32/`, later `ablate.json` and `report.html`.
        n: held-out samples a task.
        later: name -> LoRA file of later adapters, for the rows that admit some.
        device: that torch computes on, one of `quad.core.device.DEVICES`.
    """

    model: Path
    adapters: Mapping[str, Path]
    out: Path
    rows: Sequence[AblationRow]
    n: int = 16
    target: str = "cpu"
    later: Mapping[str, Path] = field(default_factory=dict)
    device: str = CPU

    @property
    def synthetic_dir(self) -> Path:
        """Directory of the adapter made on purpose from the first one by name, where a row asks for it."""
        return self.out / SYNTHETIC

    def check(self) -> None:
        """Refuse before anything is loaded or written.

        Raises:
            UsageError: `n` is below 1. InputError: no model, or no adapter. UnsupportedError: as `check_world`.
        """
        if self.n < 1:
            raise UsageError(mismatch("--n", "1 or more", self.n, "choose a larger one"))
        check_world(self.model)
        if not self.adapters:
            raise InputError(mismatch("--adapter", "at least one adapter", "none", "write --adapter NAME=PATH"))
