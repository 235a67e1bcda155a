"""The one model contract of all samplers: a network output at x_t becomes an estimate of the clean picture and of the noise.

    symbol   here        meaning
    x_t      `x`         variance-preserving state, x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps
    abar     `abar`      share of signal variance left at t, 1 is clean
    x_0      `x0`        estimated clean latent
    eps      `eps`       estimated unit noise
    v        `output`    sqrt(abar) eps - sqrt(1 - abar) x_0, for prediction `v_prediction`

Source: Salimans and Ho 2022, appendix D (v); Song et al. 2021 (DDIM), Eq. 9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import BackendError, UnsupportedError, mismatch
from quad.runtime.samplers.schedule import Array

Model = Callable[[NDArray[Any], float], NDArray[Any]]
OnStep = Callable[[int, float, NDArray[Any]], None]


def split_output(prediction: str, output: Array, x: Array, abar: float) -> tuple[Array, Array]:
    """The pair (x_0, eps) that a network output means at x_t; all arrays have the shape of x.

    Raises:
        UnsupportedError: an unknown prediction, or `epsilon` where no signal is left (x_0 cannot be told there).
    """
    signal, noise = sqrt(abar), sqrt(1.0 - abar)
    match prediction:
        case "v_prediction":
            return signal * x - noise * output, signal * output + noise * x
        case "sample":
            return output, (x - signal * output) / noise
        case "epsilon" if abar > 0.0:
            return (x - noise * output) / signal, output
        case "epsilon":
            then = "use the euler sampler or a base without rescaled betas"
            raise UnsupportedError(mismatch("sampler", "v_prediction or sample at zero terminal SNR", "epsilon", then))
        case other:
            known = "epsilon, v_prediction or sample"
            raise UnsupportedError(mismatch("noise schedule", f"prediction {known}", other, "convert the base model"))


@dataclass(frozen=True)
class Denoiser:
    """A network and its listener; samplers compute in float64, the network sees `dtype`."""

    model: Model
    dtype: np.dtype[Any]
    on_step: OnStep | None = None

    def output(self, x: Array, timestep: float) -> Array:
        """The raw network output at variance-preserving x_t, float64, shape of x.

        Raises:
            BackendError: the network gave another shape, or numbers that are not finite.
        """
        output = np.asarray(self.model(x.astype(self.dtype), float(timestep)), dtype=np.float64)
        where = f"network output at timestep {timestep:g}"
        if output.shape != x.shape:
            raise BackendError(mismatch(where, f"shape {x.shape}", output.shape, "rebuild the bundle"))
        if not np.isfinite(output).all():
            raise BackendError(mismatch(where, "finite numbers", "NaN or infinity", "check the profile with quad eval"))
        return output

    def stepped(self, index: int, timestep: float, x: Array) -> None:
        """Tell the caller that step `index`, taken at `timestep`, led to the variance-preserving state x."""
        if self.on_step is not None:
            self.on_step(index, float(timestep), x.astype(self.dtype))
