"""Texts that one call has encoded already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quad.runtime.adapters.buffers import AdapterMix, Buffers

Float = NDArray[np.float32]


@dataclass
class TextMemo:
    """Texts of one call that were encoded already, with the adapters of the last that were; each prompt is encoded once."""

    buffers: Buffers | None = None
    texts: dict[str, Float] = field(default_factory=dict)

    def encode(self, mix: AdapterMix, encode: Callable[[Sequence[str]], Sequence[Float]], prompts: Sequence[str]) -> list[Float]:
        """Hidden states of prompts; those that are missing come from `encode`."""
        if self.buffers is not mix.buffers:
            self.buffers, self.texts = mix.buffers, {}
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.texts]:
            self.texts |= zip(missing, encode(missing), strict=True)
        return [self.texts[prompt] for prompt in prompts]
