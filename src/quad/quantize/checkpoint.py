"""Where distillation stands, in one safetensors file: written whole or not at all, and taken up again after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from quad.core.digests import digest
from quad.core.files import write_bytes


@dataclass(frozen=True)
class Standing:
    """How far it is.

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

    def save(self, standing: Standing, weights: Sequence[Tensor], best: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write where the run stands: `weights` and `best` in one order, and the optimizer's two moments of every weight.

        Raises:
            BackendError: the disk is full or the place cannot be written to.
        """
        if self.path is None:
            return
        tensors = {f"{kind}.{i}": x.detach().clone() for kind, some in (("weight", weights), ("best", best)) for i, x in enumerate(some)}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}": torch.as_tensor(value).clone() for name, value in state.items()}
        told = {"identity": self.identity, "step": str(standing.step), "best": standing.best.hex(), "stale": str(standing.stale)}
        write_bytes(self.path, save(tensors, {**told, "seal": _seal(told, tensors)}))

    def load(self, weights: Sequence[nn.Parameter], best: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Standing | None:
        """Put what was saved back in place; None, and nothing changed, if there is nothing whole of this run."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if told.pop("seal", None) != _seal(told, tensors) or told.get("identity") != self.identity:
            return None
        with torch.no_grad():
            for i, (weight, kept) in enumerate(zip(weights, best, strict=True)):
                weight.copy_(tensors[f"weight.{i}"])
                kept.copy_(tensors[f"best.{i}"])
        state = optimizer.state_dict()
        moments = ("step", "exp_avg", "exp_avg_sq")
        state["state"] = {i: {name: tensors[f"{name}.{i}"] for name in moments} for i in range(len(weights)) if f"exp_avg.{i}" in tensors}
        optimizer.load_state_dict(state)
        return Standing(int(told["step"]), float.fromhex(told["best"]), int(told["stale"]))


def _seal(told: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Digest of all that the file says: a file that was cut or bent has another."""
    held = {name: (str(x.dtype), list(x.shape), hashlib.sha256(x.numpy().tobytes()).hexdigest()) for name, x in tensors.items()}
    return digest([dict(told), held])
