"""One training loop for every stage: bf16 autocast, cosine rate, EMA, progress, and a checkpoint to resume from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor, nn

from quad.core.storage.files import write_bytes
from quad.zoo.train.muon import Muon


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast a stage trains; `ema` 0 keeps no average, `muon` is for matrices."""

    name: str
    out: Path
    steps: int
    batch: int
    lr: float
    warmup: int = 100
    ema: float = 0.0
    clip: float = 1.0
    weight_decay: float = 0.01
    save_every: int = 300
    floor: float = 0.02
    muon: bool = False


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine down to `floor` of the peak."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    t = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.lr * (plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


def _named(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    return {f"{i}.{name}": p for i, module in enumerate(modules) for name, p in module.named_parameters() if p.requires_grad}


_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")


def _optimizers(plan: Plan, params: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for hidden matrices and AdamW for the rest (vectors, embeddings, first and last layers)."""
    edges = ("conv_in", "conv_out", "embed")
    matrices = [p for k, p in params.items() if plan.muon and p.ndim >= 2 and not any(edge in k for edge in edges)]
    ids = {id(p) for p in matrices}
    vectors = [p for p in params.values() if id(p) not in ids]
    adam = torch.optim.AdamW(vectors, lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True)
    return [adam, Muon(matrices, lr=plan.lr, weight_decay=plan.weight_decay)] if matrices else [adam]


class _State:
    """Weights, averaged weights and optimiser moments, saved as safetensors: a killed run goes on from the last save."""

    def __init__(self, plan: Plan, params: dict[str, Tensor]) -> None:
        self.plan, self.params = plan, params
        self.file = plan.out / f"{plan.name}.state.safetensors"
        self.optimizers = _optimizers(plan, params)
        self.average = {k: p.detach().clone() for k, p in params.items()} if plan.ema else {}
        self.step = 0
        if self.file.exists():
            self._load(load_file(self.file))

    def _load(self, saved: dict[str, Tensor]) -> None:
        self.step = int(saved["step"])
        for k, p in self.params.items():
            p.data.copy_(saved[f"p.{k}"])
            if self.average:
                self.average[k].copy_(saved[f"a.{k}"])
            owner = self.owner(p)
            owner.state[p] = {name: saved[f"{name}.{k}"].clone() for name in _MOMENTS if f"{name}.{k}" in saved}

    def save(self) -> None:
        saved = {"step": torch.tensor(self.step)}
        for k, p in self.params.items():
            saved[f"p.{k}"] = p.detach().contiguous().clone()
            if self.average:
                saved[f"a.{k}"] = self.average[k].contiguous().clone()
            for name, value in self.owner(p).state[p].items():
                saved[f"{name}.{k}"] = value.contiguous().clone()
        write_bytes(self.file, save(saved))

    def owner(self, p: Tensor) -> torch.optim.Optimizer:
        return next(o for o in self.optimizers if any(p is q for group in o.param_groups for q in group["params"]))

    def use_average(self) -> None:
        for k, value in self.average.items():
            self.params[k].data.copy_(value)


def run_stage(
    plan: Plan,
    modules: Sequence[nn.Module],
    loss: Callable[[int], Tensor],
    check: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train `modules` in place; afterwards they hold the averaged weights where `plan.ema` asks for that."""
    plan.out.mkdir(parents=True, exist_ok=True)
    params = _named(modules)
    state = _State(plan, params)
    log = plan.out / f"{plan.name}.log.jsonl"
    mean, began = 0.0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(plan.name, total=plan.steps, completed=state.step)
        while state.step < plan.steps:
            torch.manual_seed(1_000_003 + state.step)
            for group in (g for o in state.optimizers for g in o.param_groups):
                group["lr"] = learning_rate(plan, state.step)
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(state.step)
            for optimizer in state.optimizers:
                optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(list(params.values()), plan.clip)
            for optimizer in state.optimizers:
                optimizer.step()
            if plan.ema:
                decay = min(plan.ema, (state.step + 1) / (state.step + 10))
                torch._foreach_lerp_(list(state.average.values()), [p.detach() for p in params.values()], 1 - decay)
            state.step += 1
            mean = 0.98 * mean + 0.02 * float(value.detach())
            progress.update(bar, completed=state.step)
            if state.step % plan.save_every == 0 or state.step == plan.steps:
                state.save()
                row = {"step": state.step, "loss": mean / (1 - 0.98 ** min(state.step, 10_000)), "seconds": time.monotonic() - began}
                with log.open("a") as stream:
                    stream.write(json.dumps(row | (check() if check else {})) + "\n")
    state.use_average()
