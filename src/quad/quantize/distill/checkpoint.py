"""The state of a distillation, in one safetensors file: written whole or not at all, and taken up again after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quad.core.storage.checksummed_file import read_checksummed, write_checksummed


@dataclass(frozen=True)
class TrainingState:
    """How far the training is.

    Args:
        step: steps done.
        best: held-out loss of the best weights so far.
        stale: checks since then.
    """

    step: int
    best: float
    stale: int


@dataclass(frozen=True)
class Checkpoint:
    """A file that belongs to one run.

    Args:
        path: None keeps nothing.
        identity: digest of all that the run is made from; a file of another run is passed over.
    """

    path: Path | None
    identity: str

    def save(self, state: TrainingState, weights: Sequence[Tensor], best: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write where the run stands: `weights` and `best` in one order, and the optimizer's two moments of every weight.

        Raises:
            BackendError: the disk is full or the place cannot be written to.
        """
        if self.path is None:
            return
        tensors = {f"{kind}.{i}": x.detach().clone() for kind, group in (("weight", weights), ("best", best)) for i, x in enumerate(group)}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}": torch.as_tensor(value).clone() for name, value in moments.items()}
        fields = {"step": str(state.step), "best": state.best.hex(), "stale": str(state.stale)}
        write_checksummed(self.path, self.identity, fields, {name: tensor.cpu().numpy() for name, tensor in tensors.items()})

    def load(self, weights: Sequence[nn.Parameter], best: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Put what was saved back in place; None, and nothing changed, if there is nothing whole of this run."""
        saved = None if self.path is None else read_checksummed(self.path, self.identity)
        if saved is None:
            return None
        fields, tensors = saved[0], {name: torch.from_numpy(array) for name, array in saved[1].items()}
        with torch.no_grad():
            for i, (weight, best_weight) in enumerate(zip(weights, best, strict=True)):
                weight.copy_(tensors[f"weight.{i}"])
                best_weight.copy_(tensors[f"best.{i}"])
        adam = optimizer.state_dict()
        moments = ("step", "exp_avg", "exp_avg_sq")
        adam["state"] = {i: {name: tensors[f"{name}.{i}"] for name in moments} for i in range(len(weights)) if f"exp_avg.{i}" in tensors}
        optimizer.load_state_dict(adam)
        return TrainingState(int(fields["step"]), float.fromhex(fields["best"]), int(fields["stale"]))
