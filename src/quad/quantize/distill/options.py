"""How an adapter's weights are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from quad.core.errors import UsageError, mismatch


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How the weights are trained.

    Args:
        steps: of Adam at most; 0 aligns by rescaling alone.
        rate: the first step's length, as a share of each tensor's root mean square; it falls along a cosine.
        batch: calls a step, over all processes.
        effect_weight: w.
        lambda_: weight of the denoising loss.
        every: steps between two checks on held-out calls.
        patience: checks without gain after which it stops.
        seed: of the order of calls.
        checkpoint: file to keep the state in, None for none.
    """

    steps: int = 0
    rate: float = 0.0008
    batch: int = 4
    effect_weight: float = 4.0
    lambda_: float = 0.0
    every: int = 10
    patience: int = 5
    seed: int = 0
    checkpoint: Path | None = None

    def check(self, examples: bool) -> None:
        """Refuse values outside their range.

        Args:
            examples: there is data with exact answers.

        Raises:
            UsageError: a negative number of steps or lambda, or a lambda without data.
        """
        if self.steps < 0:
            raise UsageError(mismatch("--distill-steps", "0 or more", self.steps, "choose a larger one"))
        if not 0.0 <= self.lambda_ < math.inf:
            raise UsageError(mismatch("--lambda", "a number from 0", self.lambda_, "choose another"))
        if self.lambda_ > 0.0 and self.steps == 0:
            raise UsageError(mismatch("--lambda", "steps of training", "--distill-steps 0", "ask for some, or leave it out"))
        if self.lambda_ > 0.0 and not examples:
            next_step = "leave it out: the teacher's runs are enough"
            raise UsageError(mismatch("--lambda", "samples with their true pictures", "none", next_step))
