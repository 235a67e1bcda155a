"""Margins: how much wider an encoding is than the range that calibration saw, one table for all tensors.

Clipping what calibration did not see costs more than the resolution that a wider range takes: at 16 bits twice the range costs 6 dB of
some 90.

| margin | of | times the range |
|---|---|---|
| `ACTIVATION` | a 16-bit activation, and a 16-bit edge that no Site reads | 2 |
| its half | the same, over what another adapter than the anchor brings to it | 1.5 |
| `HEADROOM` | q, k, v of the U-Net's attention and what their product is, on top of their activation's at 16 bits | 4 |
| `LORA_MID` | `A x`, on top of its activation's | 8 at 16 bits, 4 at 8 bits, mirrored |
| `SLOT_B` | B of a slot, over the largest of all adapters | 2.05 at 16 bits, 1 at 8 bits |

How far an adapter's weight may go above 1 within its slot's encoding, its headroom, is another thing: `quad.runtime.adapters.weighted_sum`.
"""

from __future__ import annotations

from dataclasses import dataclass

Bounds = tuple[float, float]  # low <= 0 <= high


@dataclass(frozen=True)
class Margin:
    """An addition to both ends of a range.

    Args:
        share: of each end; 1.0 makes the range twice as wide.
        mirrored: both ends go as far as the farther one does.
    """

    share: float = 0.0
    mirrored: bool = False

    @property
    def factor(self) -> float:
        """How many times as wide the range becomes."""
        return 1.0 + self.share

    @property
    def half(self) -> Margin:
        """Half of what is added."""
        return Margin(self.share / 2.0, self.mirrored)


NO_MARGIN = Margin()

# Measured on a random U-Net, 4 calls an adapter, another input, all else at 16 bits: the worst adapter had 45 dB with a share of 0.1 and 69
# dB with 1.0. A mix of adapters with weights over 1 needs it too.
ACTIVATION = Margin(1.0)

# A later adapter and its weight move these most. Toyland, w8a16, effect of `pastel` at 4 times its strength: 40.4 dB without, 48.4 dB
# with it; of the build's own adapters none changes by more than 0.14 dB. The same at all sites costs faint adapters 3.7 to 5.0 dB.
HEADROOM = Margin(3.0)

# A x has rare values far beyond those of a few calibration runs. Measured on Toyland's portrait adapter, calls that calibration did not
# see: 20 dB as calibrated, 40 dB with this margin at 16 bits; w8a8, one call: 14 dB, with this margin 27 dB. The other adapters stay as
# they are. A mix of adapters needs it too. Mirrored, since another pair of factors of the same product may turn its sign (`rescale`).
LORA_MID = {16: Margin(7.0, mirrored=True), 8: Margin(3.0, mirrored=True)}

# A weight up to this factor, which scales B, clips nothing, and a sum of adapters that needs more ranks than there are fits in. Measured on
# Toyland, effect of the worst adapter: 16 bits lose 0.06 dB; 8 bits would lose 1.4 dB with 1.25.
SLOT_B = {16: Margin(1.05), 8: NO_MARGIN}


# Scales of normalised slots as integers: those of a build's own adapters are 1 at most, so an adapter may be this much stronger, or have
# this weight. A step is then 0.00024 of the largest.
SCALES_END = 8.0


def widen(bounds: Bounds, margin: Margin) -> Bounds:
    """The range with its margin."""
    low, high = bounds
    if margin.mirrored:
        reach = margin.factor * max(-low, high)
        return -reach, reach
    return low * margin.factor, high * margin.factor
