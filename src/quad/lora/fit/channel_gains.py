"""The adapter for a network whose norms were smoothed: its A takes what the norm before it lost (docs/method.md section 5, step 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quad.lora.adapter import FloatAdapter, LowRank

SmoothingScales = Mapping[str, Sequence[float] | NDArray[np.float32]]  # layer path -> scale of each input channel


def smooth_adapter(adapter: FloatAdapter, scales: SmoothingScales) -> FloatAdapter:
    """The adapter for the smoothed network: A's input channels times the scales of its layer."""

    def moved(path: str, pair: LowRank) -> LowRank:
        scale = scales.get(path)
        if scale is None:
            return pair
        by = np.asarray(scale, np.float32).reshape(1, -1, *(1,) * (pair.a.ndim - 2))
        return replace(pair, a=(pair.a * by).astype(np.float32))

    return replace(adapter, weights={path: moved(path, pair) for path, pair in adapter.weights.items()})
