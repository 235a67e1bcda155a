"""`ports.json`: how a graph that computes on integers only is fed. It lies beside the graph's file.

A port is one input or output of such a graph. Slot inputs have no port: adapters bring their integers themselves.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.encoding import Encoding

PORTS_FILE = "ports.json"


class Sinusoid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The timestep's embedding, computed outside the graph. Source: diffusers' `Timesteps`.

    Args:
        channels: of the embedding, even.
        cosine_first: cosines before sines.
        shift: `downscale_freq_shift`: frequencies are `period ** (-k / (channels / 2 - shift))`.
    """

    channels: int
    cosine_first: bool = True
    shift: float = 0.0
    period: float = 10000.0

    def __call__(self, timestep: NDArray[np.floating]) -> NDArray[np.float32]:
        """`(batch,)` -> `(batch, channels)`, in float32 as the network does it."""
        half = self.channels // 2
        exponent = np.float32(-np.log(self.period)) * np.arange(half, dtype=np.float32) / np.float32(half - self.shift)
        angle = timestep.astype(np.float32)[:, None] * np.exp(exponent)[None]
        waves = (np.cos(angle), np.sin(angle)) if self.cosine_first else (np.sin(angle), np.cos(angle))
        return np.concatenate(waves, axis=1).astype(np.float32)


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output.

    Args:
        dtype: element type in the graph.
        encoding: of a float value that enters or leaves as integers; None where the values are integers anyway (token ids).
        sinusoid: of a port that takes a timestep.
    """

    dtype: str
    encoding: Encoding | None = None
    sinusoid: Sinusoid | None = None

    def encode(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """A caller's values as the graph takes them."""
        if self.sinusoid is not None:
            values = self.sinusoid(np.asarray(values, np.float32))
        if self.encoding is not None:
            return self.encoding.quantize(np.asarray(values, np.float32))
        return values.astype(self.dtype, copy=False)

    def decode(self, values: NDArray[np.integer]) -> NDArray[np.float32]:
        """The graph's values as float32."""
        return np.asarray(values, np.float32) if self.encoding is None else self.encoding.dequantize(values)


class Ports(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of one graph, by name."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
