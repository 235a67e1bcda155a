"""The identity, with a look at the gradient that comes back through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def tap_gradient(x: Tensor, take: Callable[[Tensor], None], anchor: Tensor | None = None) -> Tensor:
    """The tensor itself; `take` is called with its gradient at every pass back.

    Args:
        anchor: a scalar leaf that wants a gradient, so that the tensor lies on a path to one; its own is 0. None where it is on one.
    """
    return cast(Tensor, _Tapped.apply(x, take, anchor))  # type: ignore[no-untyped-call]


class _Tapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Callable[[Tensor], None], anchor: Tensor | None) -> Tensor:
        ctx.take, ctx.is_anchored = take, anchor is not None
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.take(grads[0])
        return grads[0], None, grads[0].new_zeros(()) if ctx.is_anchored else None
