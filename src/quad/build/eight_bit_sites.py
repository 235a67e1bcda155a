"""The quality steps of a build with 8-bit activations: split skips, equalization, the choice of the sites.

Source: docs/method.md section 5, steps 3, 4 and 7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from quad.core.slots import SlotTable
from quad.lora.fit.channel_gains import smooth_adapter
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.slots.network import SlottedNetwork
from quad.model.slots.skips import split_skips
from quad.quantize.correct.mixed_precision import eight_bit_sites, rank_sites
from quad.quantize.correct.smooth import ChannelMaxima, smooth
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.encodings.rules import MIXED_COMPONENT, RULES, Rule, reads_text, turn_of, with_eight_bit
from quad.quantize.observe.observers import Statistics
from quad.quantize.observe.probes import Probes
from quad.quantize.profile.pooled_profile import UnifyOptions, unify


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """A U-Net on its way to 8-bit activations.

    Args:
        percent: share of its sites at 8 bits, 0 to 100; with 0 nothing is done to it.
        adapters: as they fit the network; `equalized` returns others.
        products: the target multiplies attention's operands as integers.
        probes: calls to measure damage by; empty where it is not measured.
        channels: what was heard along these calls; empty where nothing is equalized.
        gains: slot path -> gains of the layer's input channels, where the network is equalized.
        folded: the same of all layers, whether they have a slot or not.
    """

    network: SlottedNetwork
    table: SlotTable
    adapters: tuple[FloatAdapter, ...]
    quality: QualitySteps
    percent: float
    products: bool = False
    probes: Probes = field(default_factory=dict)
    channels: ChannelMaxima = field(default_factory=dict)
    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of_sources(self, sources: Collection[str]) -> MixedPrecision:
        """The same with what these adapters, and the base where it is among them, bring to the choice of sites."""
        return replace(
            self,
            adapters=tuple(adapter for adapter in self.adapters if adapter.name in sources),
            probes={source: calls for source, calls in self.probes.items() if source in sources},
        )

    @property
    def needs_probes(self) -> bool:
        """Is there something to measure: nothing at 16 bits, and no site to choose where all go to 8."""
        chooses = self.quality.rank_sites and 0.0 < self.percent < 100.0
        return chooses or (self.quality.equalize and self.percent > 0.0)

    def split(self) -> None:
        """Two Sites at every skip concat, in the network itself."""
        if self.quality.split_skips and self.percent > 0.0:
            split_skips(self.network)

    def equalized(self) -> MixedPrecision:
        """With gains folded into the network and multiplied into the adapters."""
        if not (self.quality.equalize and self.percent > 0.0):
            return self
        gains = smooth(self.network, self.channels)
        adapters = tuple(smooth_adapter(adapter, gains) for adapter in self.adapters)
        slots = {slot.path for slot in self.table.slots}
        folded = {path: tuple(float(g) for g in gain) for path, gain in gains.items()}
        return replace(self, adapters=adapters, gains={path: gain for path, gain in folded.items() if path in slots}, folded=folded)

    def rules(self, statistics: Statistics, options: UnifyOptions) -> tuple[Rule, ...]:
        """The rules of the profile: the chosen sites at 8 bits.

        Args:
            statistics: of the network as it is now.
            options: how the profile chooses ranges.
        """
        if self.percent == 0.0:
            return RULES
        sites = statistics.sites[MIXED_COMPONENT]
        chosen = (name for name in sites if not (self.quality.text_at_16 and reads_text(name)))
        names = sorted(chosen, key=partial(turn_of, products=self.products))
        if self.quality.rank_sites and self.percent < 100.0:
            unet = Statistics({MIXED_COMPONENT: sites})
            trial = unify(unet, {}, self.table, self.adapters, replace(options, rules=with_eight_bit(names, products=self.products)))
            encodings = trial.component(MIXED_COMPONENT)
            ranked = rank_sites(self.network, {name: encodings[name] for name in names}, self.probes, self._slots(), products=self.products)
            names = [site.name for site in ranked]
        return with_eight_bit(eight_bit_sites(names, self.percent), products=self.products)

    def _slots(self) -> BalancedSlots:
        return BalancedSlots(self.adapters, self.table)
