"""Many calls as few: each answer is that of the call alone, and batches are the same however many cores there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quad.core.decibels import relative_error
from quad.lora.fit.integers import balanced_inputs
from quad.quantize.observe import batched_calls, side_by_side
from quad.quantize.observe.batched_calls import TensorInputs, batched, batched_forms, batched_forward


def calls(count: int, rows: int = 2, side: int = 8) -> list[TensorInputs]:
    torch.manual_seed(count)
    return [(torch.randn(rows, 4, side, side), torch.full((rows,), 10.0 * number), torch.randn(rows, 3, 5)) for number in range(count)]


@pytest.mark.parametrize(("count", "rows"), [(0, 2), (1, 2), (2, 2), (5, 2), (7, 1), (40, 1)])
def test_each_call_has_its_own_answer(count: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_calls, "_VALUES", 4 * 4 * 8 * 8)
    asked, seen = calls(count, rows), []

    def compute(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        seen.append(len(sample))
        return sample * timestep.reshape(-1, 1, 1, 1) + text.sum(dim=(1, 2)).reshape(-1, 1, 1, 1)

    answers = batched(compute, asked)
    assert all(torch.equal(answer, compute(*call)) for answer, call in zip(answers, asked, strict=True))
    batches = seen[: len(seen) - count]
    assert sum(batches) == count * rows
    assert max(batches, default=0) <= 4  # of pictures
    assert count < 2 or len(batches) > 1  # the other core has something to do


@pytest.mark.parametrize("lanes", [1, 2])
def test_forms_are_asked_together_and_answer_as_alone(lanes: int, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "lanes", lambda: lanes)
    sample, timestep, text = tiny.inputs
    asked = [(sample * scale, timestep.expand(len(sample)), text) for scale in (1.0, 0.5, 2.0)]
    slots = balanced_inputs(tiny.adapters[0], tiny.table)
    base, adapted = batched_forms(tiny.network, [(asked, {}), (asked[:2], slots)])
    assert (len(base), len(adapted)) == (3, 2)
    for answers, alone in ((base, batched_forward(tiny.network, asked, {})), (adapted, batched_forward(tiny.network, asked[:2], slots))):
        assert max(relative_error(one.numpy(), other.numpy()) for one, other in zip(answers, alone, strict=True)) < 1e-5
    assert relative_error(base[0].numpy(), adapted[0].numpy()) > 1e-4
