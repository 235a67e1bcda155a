"""Rescaling: another pair of factors for the same product, before any training. Source: docs/method.md section 3.

    B A = (B G^-1)(G A)    for every invertible G (r, r)

| symbol | here |
|---|---|
| A, B | the factors as matrices `(r, in)` and `(out, r)`; kernels count as inputs |
| a_k, b_k | row k of A, column k of B: one rank channel |
| s_A, s_B | the slot's frozen scales, one per tensor, shared by all adapters |
| g_k | entry k of a diagonal G |

Rounding to nearest adds errors of variance `s^2/12` to every entry, so channel k of the product is expected to be wrong by

    E_k = (s_B^2 out g_k^2 |a_k|^2 + s_A^2 in |b_k|^2 / g_k^2) / 12,    least at    g_k^2 = (s_A / s_B) sqrt(in / out) |b_k| / |a_k|

Around that g_k, inside the two ranges, a few values are tried on the integers themselves. A diagonal G mends channels of different size;
where a few entries stick out of all channels, the singular value decomposition with its energy spread evenly over the channels by a
Hadamard (or cosine) rotation is tried too. Of both the one of smaller computed error is taken, slot by slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from quad.core.encoding import Encoding
from quad.core.margins import NO_MARGIN, SLOT_B, Margin
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.lora.adapter import FloatAdapter, LowRank
from quad.lora.fit.forms import Form, Matrix, form_of, pair_of, rotate

_SAME = 1e-4  # a factor this near to one is left alone, so that balancing twice is balancing once
_WORTH = 0.99  # another form must be better by this
_TRIES = 13  # values of g_k tried around the closed form
_SPREAD = 1.6  # and how far, either way
# A x is encoded for the adapter's balanced form with a margin (`margins.LORA_MID`); this factor of it may be used up here.
_MID_GROWTH = 2.0**0.5


# Pair -> its balanced form, None for one that is balanced itself: a value that held its own key would never be let go.
_BALANCED: WeakKeyDictionary[LowRank, LowRank | None] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Scales:
    """The frozen encodings of one slot: step and largest value of A and of B."""

    step_a: float
    step_b: float
    limit_a: float
    limit_b: float

    def a(self, values: Matrix) -> Matrix:
        return np.rint(np.clip(values, -self.limit_a, self.limit_a) / self.step_a) * self.step_a

    def b(self, values: Matrix) -> Matrix:
        return np.rint(np.clip(values, -self.limit_b, self.limit_b) / self.step_b) * self.step_b

    def hold(self, form: Form) -> bool:
        """Does the pair fit without clipping."""
        peak_a, peak_b = form.peaks
        return bool(peak_a.max(initial=0.0) <= self.limit_a * (1 + 1e-6) and peak_b.max(initial=0.0) <= self.limit_b * (1 + 1e-6))


def _own_error(form: Form) -> float:
    """The expected cost of rounding where this pair alone sets both ranges, up to a constant factor."""
    (peak_a, peak_b), (inputs, outputs) = form.peaks, (form.a.shape[1], len(form.b))
    largest_a, largest_b = float(peak_a.max(initial=0.0)), float(peak_b.max(initial=0.0))
    return float(outputs * largest_b**2 * np.square(form.a).sum() + inputs * largest_a**2 * np.square(form.b).sum())


def _error(pair: LowRank, encoding_a: Encoding, encoding_b: Encoding) -> float:
    """`|B^ A^ - B A|^2` of a pair as it is written: an encoding rounds in float32, where some values lie on another side of a half.

    Never as a matrix `(out, in)`: the difference is `[B^ - B | B] [A^; A^ - A]`, whose square is that of two small Gram matrices.
    """
    form, written = form_of(pair), form_of(LowRank(*(e.dequantize(e.quantize(x)) for e, x in ((encoding_a, pair.a), (encoding_b, pair.b)))))
    right = np.concatenate([written.a, written.a - form.a])
    left = np.concatenate([written.b - form.b, form.b], axis=1)
    return float(((left.T @ left) * (right @ right.T)).sum())


def balance_pair(pair: LowRank) -> LowRank:
    """The same product in the factors that are expected to round best in ranges of their own, `max|A| = max|B|`.

    It looks at one adapter alone, so one that is admitted later is treated the same way. A channel whose product is zero becomes zero.
    Many stages of a build ask for the same pair: it is computed once while the pair lives.
    """
    if pair not in _BALANCED:
        balanced = _balance_pair(pair)
        _BALANCED[pair] = None if balanced is pair else balanced
        _BALANCED[balanced] = None
    return _BALANCED[pair] or pair


def _balance_pair(pair: LowRank) -> LowRank:
    form = form_of(pair)
    if not form.alive.any():
        return replace(pair, a=np.zeros_like(pair.a), b=np.zeros_like(pair.b))
    best, start = _balance_whole(form), form.alive_only()
    rotated = rotate(start)
    for other in (_balance_channels(start), rotated, _balance_channels(rotated)):
        if _own_error(other) < _WORTH * _own_error(best):
            best = other
    balanced = _balance_whole(best)
    return pair if balanced is form else pair_of(balanced, pair)


def rescale_pair(pair: LowRank, encoding_a: Encoding, encoding_b: Encoding) -> LowRank:
    """The same product in the factors of least computed error under a slot's frozen encodings, within their ranges where that is possible.

    Args:
        pair: in its balanced form, which the range of `A x` was observed with; no row of A becomes much longer than its longest, and the
            margin of B's range for weights over 1 (`margins.SLOT_B`) is used only by a pair that does not fit without.
    """
    scales, form = _scales(encoding_a, encoding_b), form_of(pair)
    if not form.alive.any():
        return pair
    rotated, longest, best = rotate(form), float(np.linalg.norm(form.a, axis=1).max()) * _MID_GROWTH, pair
    for margin in (SLOT_B[encoding_b.bits], NO_MARGIN):
        narrow = _scales(encoding_a, encoding_b, margin)
        candidates = [pair, *(pair_of(_fitted(start, narrow, longest), pair) for start in (form, rotated))]
        best = min(candidates, key=lambda one: (not scales.hold(form_of(one)), _error(one, encoding_a, encoding_b)))
        if scales.hold(form_of(best)):
            break
    return best


def _scales(encoding_a: Encoding, encoding_b: Encoding, margin: Margin = NO_MARGIN) -> _Scales:
    """Of a slot; with a margin, as they were before B's range was widened by it for weights over 1."""
    step_a, step_b = encoding_a.scale[0], encoding_b.scale[0] / margin.factor
    return _Scales(step_a=step_a, step_b=step_b, limit_a=step_a * encoding_a.qmax, limit_b=step_b * encoding_b.qmax)


def rescale(adapter: FloatAdapter, table: SlotTable, profile: Profile) -> FloatAdapter:
    """The adapter with every slot rescaled to the profile's encodings; slots without any are left as they are.

    Args:
        adapter: balanced, and of the profile's channel gains.
    """
    slots, weights = table.by_path(), dict(adapter.weights)
    for path, pair in adapter.weights.items():
        encodings = profile.component(slots[path].component) if path in slots else {}
        names = (slots[path].a_name, slots[path].b_name) if path in slots else ("", "")
        if all(name in encodings for name in names):
            weights[path] = rescale_pair(pair, encodings[names[0]], encodings[names[1]])
    return replace(adapter, weights=weights)


def _balance_whole(form: Form) -> Form:
    """`max|A| = max|B|` by one number."""
    largest_a, largest_b = (float(peak.max()) for peak in form.peaks)
    gain = float(np.sqrt(largest_b / largest_a)) if largest_a > 0.0 and largest_b > 0.0 else 1.0
    return form if abs(gain - 1.0) < _SAME else form.scaled(gain)


def _balance_channels(form: Form) -> Form:
    """`max|a_k| = max|b_k|` in every channel."""
    peak_a, peak_b = form.peaks
    return form.scaled(np.sqrt(np.where(form.alive, peak_b, 1.0) / np.where(form.alive, peak_a, 1.0)))


def _fitted(form: Form, scales: _Scales, longest: float) -> Form:
    """The form under the diagonal G of least error: the closed form, then a short search on the integers."""
    alive, (peak_a, peak_b) = form.alive, form.peaks
    length_a, length_b = (np.where(alive, np.linalg.norm(x, axis=axis), 1.0) for x, axis in ((form.a, 1), (form.b, 0)))
    lowest = np.where(alive, peak_b / scales.limit_b, 1.0)
    highest = np.where(alive, np.minimum(scales.limit_a / np.where(alive, peak_a, 1.0), longest / length_a), 1.0)
    highest = np.maximum(lowest, highest)  # what does not fit is left to B's range: the caller sees that A does not
    best = np.sqrt(scales.step_a / scales.step_b * np.sqrt(form.a.shape[1] / len(form.b)) * length_b / length_a)
    tried = np.clip(best * _SPREAD ** np.linspace(-1.0, 1.0, _TRIES)[:, None], lowest, highest)
    errors = np.stack([_channel_errors(form, form.scaled(gains), scales) for gains in tried])
    return form.scaled(np.where(alive, tried[errors.argmin(axis=0), np.arange(len(alive))], 1.0))


def _channel_errors(true: Form, form: Form, scales: _Scales) -> Matrix:
    """`|b_k^ a_k^ - b_k a_k|^2` of every channel, `(r,)`."""
    a, b = scales.a(form.a), scales.b(form.b)
    rounded, exact = (np.square(x.a).sum(axis=1) * np.square(x.b).sum(axis=0) for x in (Form(a, b), true))
    return np.asarray(rounded + exact - 2.0 * (a * true.a).sum(axis=1) * (b * true.b).sum(axis=0))
