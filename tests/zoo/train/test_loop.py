"""The loop's promise: a killed run that goes on ends where an unbroken one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quad.zoo.train.loop import Plan, learning_rate, run_stage
from quad.zoo.train.muon import orthogonalise


def _plan(out: Path, steps: int) -> Plan:
    return Plan(name="toy", out=out, steps=steps, batch=4, lr=1e-2, warmup=2, ema=0.9, muon=True, save_every=3)


def _train(plan: Plan, stop_at: int | None = None) -> Tensor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def loss(step: int) -> Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        value: Tensor = net(torch.randn(4, 6)).float().square().mean()
        return value

    try:
        run_stage(plan, [net], loss)
    except KeyboardInterrupt:
        return torch.empty(0)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    uninterrupted = _train(_plan(tmp_path / "whole", 8))
    _train(_plan(tmp_path / "broken", 8), stop_at=5)
    resumed = _train(_plan(tmp_path / "broken", 8))
    assert torch.equal(uninterrupted, resumed)
    assert not list(tmp_path.rglob("*.part"))


def test_the_rate_warms_up_and_ends_at_its_floor(tmp_path: Path) -> None:
    plan = replace(_plan(tmp_path, 100), warmup=10)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert max(rates) == pytest.approx(plan.lr)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(plan.lr * plan.floor, rel=0.1)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonalised_updates_move_all_directions_alike(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    # The iteration's fixed band around one, widened by bf16.
    assert float(singular.min()) > 0.4
    assert float(singular.max()) < 1.4
