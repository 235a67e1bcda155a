"""The quality steps of docs/method.md section 5 as switches, each a row of the ablation, and what else it may try."""

from __future__ import annotations

from dataclasses import dataclass

from quad.quantize.encodings.ranges import RangeOptions


@dataclass(frozen=True, kw_only=True)
class QualitySteps:
    """The steps that a build takes.

    Args:
        search_ranges: step 2, ranges of least error; off: smallest and largest value.
        split_skips: step 3, two encodings at every skip concat. It acts on 8-bit sites alone: 16 bits hold both halves.
        equalize: step 4, SmoothQuant smoothing, folded into norms. For 8-bit sites alone, likewise.
        bias_correction: step 5.
        rank_sites: step 7, the least damaging sites first; off: in the network's own order, which is what ranking has to beat.
        effect_weight: step 6, weight of the adapter's effect beside the output in what training minds.
        text_at_16: what cross-attention reads of the text stays at 16 bits: no worse than its first token apart could be.
        mid_widening: of normalised slots, how many times as wide the ranges of A x are as those of searched slots.
    """

    search_ranges: bool = True
    split_skips: bool = True
    equalize: bool = True
    bias_correction: bool = True
    rank_sites: bool = True
    text_at_16: bool = False
    effect_weight: float = 4.0
    mid_widening: float = 1.0

    @property
    def ranges(self) -> RangeOptions:
        """How the build chooses ranges."""
        return RangeOptions() if self.search_ranges else RangeOptions(method="minmax")
