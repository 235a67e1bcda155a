"""A layer's weight as it is held in memory, and its float32 numbers, which every call makes anew.

1. float32                              its own numbers
2. half precision, as its file has it   its numbers, widened
3. integers of 8 or 4 bits, rounded     integers, from their zero point, times steps

The networks of a large model are held so: float32 would be two to four times as much, of a billion numbers. What a layer answers is the
same to the bit. Gradients go to its inputs alone, and the numbers are made again on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from quad.core.encoding import Encoding

STEP = "weight_step"  # attribute of a layer: what the numbers it holds are multiplied by, None for 1


@dataclass(frozen=True)
class HeldWeight:
    """A weight `(out, in, *kernel)`.

    Args:
        stored: float32, float16, bfloat16 or int8.
        step: that all of it is multiplied by, as it broadcasts; None for 1.
    """

    stored: nn.Parameter
    step: Tensor | None = None

    @staticmethod
    def of(layer: nn.Module) -> HeldWeight:
        """The weight of a layer, or of a table."""
        return HeldWeight(cast(nn.Parameter, layer.weight), cast("Tensor | None", getattr(layer, STEP, None)))

    @staticmethod
    def of_integers(integers: Tensor, encoding: Encoding) -> HeldWeight:
        """Integers of an encoding of 4 bits, or of a symmetric one of 8."""
        scale, zero = (torch.from_numpy(part).to(integers.device) for part in encoding.broadcast(integers.ndim))
        from_zero = integers.to(torch.int8) if encoding.symmetric else (integers.to(zero.dtype) - zero).to(torch.int8)
        return HeldWeight(nn.Parameter(from_zero, requires_grad=False), scale)

    @property
    def is_compact(self) -> bool:
        """Is it held in less than float32."""
        return self.step is not None or self.stored.dtype != torch.float32

    def numbers(self) -> Tensor:
        """Its numbers as float32; itself where it is held so."""
        full = self.stored.float()
        if self.step is None:
            return full
        return full * self.step if full is self.stored else full.mul_(self.step)

    def factor(self) -> Tensor:
        """Its numbers for a product: as they are held where products are computed in that type, else as float32."""
        short = self.step is None and self.stored.dtype == torch.bfloat16 and torch.is_autocast_enabled(self.stored.device.type)
        return self.stored if short else self.numbers()

    def scaled(self, by: Tensor) -> HeldWeight:
        """The same with its numbers multiplied, as `by` broadcasts."""
        if self.is_compact and self.step is None:
            return HeldWeight(self.stored, by)
        return HeldWeight(nn.Parameter(self.numbers() * by, requires_grad=False))

    def put(self, layer: nn.Module) -> None:
        """Make it a layer's own; another layer that shares the one before does not see it."""
        layer.weight = self.stored
        if hasattr(layer, STEP):
            setattr(layer, STEP, self.step)


def add_step(layer: nn.Module, like: nn.Module) -> None:
    """Give a layer the place where a step is, with that of the layer it stands for."""
    layer.register_buffer(STEP, cast("Tensor | None", getattr(like, STEP, None)), persistent=False)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`W x + b` of `(..., in)`."""
    held = HeldWeight.of(layer)
    if _is_remembered(held, x):
        return cast(Tensor, _Linear.apply(x, held, layer.bias))  # type: ignore[no-untyped-call]
    return functional.linear(x, held.factor(), layer.bias)


def convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of `(batch, in, height, width)`."""
    held = HeldWeight.of(layer)
    if _is_remembered(held, x) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return cast(Tensor, _Convolution.apply(x, held, layer))  # type: ignore[no-untyped-call]
    answer: Tensor = layer._conv_forward(x, held.factor(), layer.bias)
    return answer


def _is_remembered(held: HeldWeight, x: Tensor) -> bool:
    """Would torch keep the float32 numbers for the way back."""
    return held.is_compact and torch.is_grad_enabled() and x.requires_grad


class _Linear(torch.autograd.Function):
    """A product that remembers the weight as it is held."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: HeldWeight, bias: Tensor | None) -> Tensor:
        ctx.held = held
        return functional.linear(x, held.numbers(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] @ ctx.held.numbers(), None, None


class _Convolution(torch.autograd.Function):
    """A convolution that does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: HeldWeight, layer: nn.Conv2d) -> Tensor:
        ctx.held, ctx.layer, ctx.shape = held, layer, x.shape
        answer: Tensor = layer._conv_forward(x, held.numbers(), layer.bias)
        return answer

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        layer: nn.Conv2d = ctx.layer
        places = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d_input(ctx.shape, ctx.held.numbers(), grads[0], *places), None, None
