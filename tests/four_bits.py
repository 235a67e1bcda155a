"""What weights of 4 bits and their corrections stand for, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quad.quantize.correct.four_bits import Correction, FourBitWeight


def product_of(correction: Correction) -> NDArray[np.float64]:
    """What a correction adds to a weight, `(out, inputs)`."""
    columns = correction.b.astype(np.float64) * (correction.scales.astype(np.float64) / 127**2)
    product: NDArray[np.float64] = columns @ correction.a.astype(np.float64)
    return product


def values_of(weight: FourBitWeight) -> NDArray[np.float64]:
    """The weight that a layer with its correction computes with."""
    values = weight.encoding.dequantize(weight.integers).astype(np.float64)
    return values if weight.correction is None else values + product_of(weight.correction).reshape(values.shape)
