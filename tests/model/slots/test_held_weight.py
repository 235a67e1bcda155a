"""A weight held in half precision: answer and gradient are those of float32, and no float32 copy waits for the way back."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from quad.model.slots import held_weight
from quad.model.slots.held_weight import HeldWeight, convolution, linear

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "3x3": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 8, 8)),
    "strided": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (2, 6, 9, 8)),
    "grouped, dilated": (lambda: nn.Conv2d(6, 4, 3, groups=2, dilation=2), (2, 6, 8, 8)),
    "padded by name": (lambda: nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 8, 8)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 8, 8)),
}


def answer_and_gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    answer = linear(layer, x) if isinstance(layer, nn.Linear) else convolution(layer, x)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(answer.square().sum(), x)
    return answer.detach(), gradient


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_answer_and_gradient(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    half = make().requires_grad_(False)
    half.weight.data = half.weight.half()
    full = make().requires_grad_(False)
    full.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    x = torch.randn(shape)
    for mine, theirs in zip(answer_and_gradient(half, x), answer_and_gradient(full, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """The float32 copies of weights, as they are taken."""
    taken = list[weakref.ref[Tensor]]()
    numbers = HeldWeight.numbers

    def followed(self: HeldWeight) -> Tensor:
        tensor = numbers(self)
        taken.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(held_weight.HeldWeight, "numbers", followed)
    return taken


@pytest.mark.parametrize("name", ["linear", "3x3", "strided", "grouped, dilated"])
def test_no_copy_waits_for_the_way_back(name: str, copies: list[weakref.ref[Tensor]]) -> None:
    make, shape = LAYERS[name]
    layer = make().requires_grad_(False)
    layer.weight.data = layer.weight.half()
    x = torch.randn(shape).requires_grad_()
    answer = linear(layer, x) if isinstance(layer, nn.Linear) else convolution(layer, x)
    gc.collect()
    assert len(copies) == 1
    assert [copy() for copy in copies] == [None]
    assert answer.requires_grad
