"""What a call of the pipeline gives, and what it gathers on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from PIL import Image


@dataclass(frozen=True)
class PipelineOutput:
    """What one call gives.

    Args:
        images: one PIL picture.
        notes: what the user should be told, one line each: unknown words, resized masks, unused inputs.
        timings_ms: `text_encoder`, `vae_encoder` (where a picture is read), `unet` (all steps), `vae_decoder`, `total`. A graph that the
            memory plan does not keep is loaded within its own; what passed between two stages of a picture is in none.
        adapters: adapter name -> weight, as used.
    """

    images: list[Image.Image]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    task: str
    adapters: dict[str, float]
    seed: int


@dataclass
class Run:
    """Notes and times of one call, while it runs."""

    notes: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the block's wall time to `name`."""
        start = perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (perf_counter() - start) * 1e3
