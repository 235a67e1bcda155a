"""From a pooled profile to the shared one: score the adapters, choose whose ranges hold, take those. Source: docs/method.md section 4."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from quad.core.profile import Profile
from quad.core.progress import Progress, silent
from quad.core.slots import SlotTable
from quad.lora.read import FloatAdapter
from quad.quantize.observe.observers import Statistics
from quad.quantize.observe.probes import Probes
from quad.quantize.profile.anchor import choose
from quad.quantize.profile.pooled_profile import UnifyOptions
from quad.quantize.profile.sensitivity import Sensitivity, score_adapters
from quad.quantize.profile.shared_ranges import choose_ranges, own_profiles

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """What adapters are scored with.

    Args:
        network: float slotted U-Net, as it was calibrated.
        table: the slots.
        probes: gives what the adapters are scored on.
        progress: told which adapter is scored.
    """

    network: nn.Module
    table: SlotTable
    adapters: Sequence[FloatAdapter]
    probes: Callable[[], Probes]
    progress: Progress = silent

    def sensitivity(self, pooled: Profile, statistics: Statistics, options: UnifyOptions) -> Sensitivity:
        """QSS of every adapter; errors as `probes` and `score_adapters`.

        Args:
            pooled: of `unify`, with the same options.
        """
        if not self.adapters:
            return Sensitivity({}, None)
        profiles = own_profiles(pooled, statistics, self.table, self.adapters, options)
        return score_adapters(self.network, self.table, self.adapters, profiles, self.probes(), self._tell)

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
        _LOG.info("profile: %s, anchor %s, %d sites widened", chosen.profile.mode, chosen.profile.anchor, len(chosen.widened))
        counts = {"anchored_sites": chosen.sites - len(chosen.widened), "widened_sites": len(chosen.widened)}
        return chosen.profile, {**choice.to_json(), **sensitivity.to_json(), **counts}
