"""From a pooled profile to the shared one: score the adapters, choose whose ranges hold, take those. Source: method.md section 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from quad.compile import kept_pieces
from quad.compile.kept import Kept
from quad.compile.stages import Progress, silent
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.model.base import Base
from quad.model.lora import FloatAdapter
from quad.quantize.anchor import choose
from quad.quantize.calibrate import CalibrationSample, with_adapter
from quad.quantize.divergence import MIN_VALUES
from quad.quantize.modes import choose_ranges, own_profiles
from quad.quantize.observers import Statistics
from quad.quantize.probes import ProbeOptions, record_probes
from quad.quantize.sensitivity import Sensitivity, score_adapters
from quad.quantize.unify import UnifyOptions


@dataclass(frozen=True)
class Scoring:
    """What adapters are scored with.

    Args:
        networks: float networks as they were calibrated.
        table: the slots.
        samples: of calibration; those without an adapter are not used.
        kept: probes that an earlier run has recorded are taken from there.
        progress: told which adapter is scored.
    """

    base: Base
    networks: Mapping[str, nn.Module]
    table: SlotTable
    adapters: Sequence[FloatAdapter]
    samples: Sequence[CalibrationSample]
    kept: Kept = field(default_factory=lambda: Kept(None))
    progress: Progress = silent

    def sensitivity(self, pooled: Profile, statistics: Statistics, options: UnifyOptions) -> Sensitivity:
        """QSS of every adapter; errors as `record_probes` and `score_adapters`.

        Args:
            pooled: of `unify`, with the same options.
        """
        if not self.adapters:
            return Sensitivity({}, None)
        samples = with_adapter(self.base, self.samples)
        how = ProbeOptions(min_values=MIN_VALUES)
        probes = kept_pieces.probes(
            self.kept, "probes.score", lambda: record_probes(self.base, self.networks, self.table, self.adapters, samples, how)
        )
        profiles = own_profiles(pooled, statistics, self.table, self.adapters, options)
        return score_adapters(self.networks["unet"], self.table, self.adapters, profiles, probes, self._tell)

    def _tell(self, adapter: str, share: float) -> None:
        self.progress(f"score {adapter}", share)

    def shared(
        self, pooled: Profile, statistics: Statistics, options: UnifyOptions, sensitivity: Sensitivity, asked: str
    ) -> tuple[Profile, dict[str, Any]]:
        """The shared profile, and what `quad build --json` says of it.

        Args:
            asked: `auto`, `unified` or an adapter's name.

        Raises:
            UsageError: no adapter of that name.
        """
        choice = choose(sensitivity, asked)
        chosen = choose_ranges(pooled, statistics, self.table, choice, options)
        counts = {"anchored_sites": chosen.sites - len(chosen.widened), "widened_sites": len(chosen.widened)}
        return chosen.profile, {**choice.to_json(), **sensitivity.to_json(), **counts}
