"""Steps that take the deep part of the U-Net from an earlier step. Source: Ma et al. 2024 (DeepCache), section 3.3, uniform 1:N.

Every N-th call of the network is whole, and keeps the feature that its deep part gives; those between compute the shallow part alone, with
that feature. Each side of guidance has a feature of its own, of this picture, with this picture's adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quad.core.extra_graphs import DEEP_FEATURE
from quad.runtime.engines.engine import Arrays, Runnable

Float = NDArray[np.float32]


class WholeGraph(Runnable, Protocol):
    """The U-Net that gives its deep feature beside its output."""

    def run_all(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Every output of the graph, see `Runnable.run`."""
        ...


@dataclass(kw_only=True)
class DeepReuse:
    """The calls of one picture.

    Args:
        every: N: one call of so many is whole.
    """

    whole: WholeGraph
    shallow: Runnable
    every: int
    _calls: int = 0
    _features: dict[int, NDArray[Any]] = field(default_factory=dict)

    def next_call(self) -> None:
        """Another call of the network begins."""
        if self._calls % self.every == 0:
            self._features.clear()
        self._calls += 1

    def run(self, side: int, inputs: Mapping[str, NDArray[Any]]) -> Float:
        """The output of one side of guidance; whole where nothing of it is there.

        Args:
            side: counted from the plain one, 0.
        """
        if side not in self._features:
            output, self._features[side] = self.whole.run_all(inputs)
            return output
        named = {name: array for name, array in inputs.items() if name in self.shallow.inputs}
        shallow: Float = self.shallow.run({**named, DEEP_FEATURE: self._features[side]})
        return shallow
