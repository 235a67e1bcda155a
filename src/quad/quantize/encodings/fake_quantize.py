"""Torch twins of `quad.core.encoding`: the same integers, with gradients. Source: docs/method.md section 1, Eq. 4-7.

| symbol | here |
|---|---|
| T, T_hat | the tensor, and the tensor after quantizing and dequantizing |
| s, z | `scale`, `zero` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from quad.core.encoding import Encoding


def _constants(encoding: Encoding, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, shaped to broadcast against `tensor`, on its device.

    They are tensors on the device, never Python numbers: CUDA divides by a number through its reciprocal, which is not Eq. 6.
    """
    scale, zero = encoding.broadcast(tensor.ndim)
    wide = torch.float64 if encoding.bits > 16 else torch.float32  # float32 holds every 16-bit integer, and not every 32-bit one
    return torch.from_numpy(scale).to(tensor.device), torch.from_numpy(zero).to(tensor.device, wide)


def _rounded(tensor: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Eq. 6 before clamping; the cast comes first, since torch lets no scalar tensor widen a larger one."""
    return torch.round(tensor.float() / scale).to(zero.dtype) + zero


def quantize(tensor: Tensor, encoding: Encoding) -> Tensor:
    """Eq. 6, the integers of `Encoding.quantize` bit for bit.

    Returns:
        int32, whatever the encoding's own type is: torch has few operations on 16-bit unsigned integers.
    """
    scale, zero = _constants(encoding, tensor)
    return torch.clamp(_rounded(tensor, scale, zero), encoding.qmin, encoding.qmax).to(torch.int32)


def dequantize(integers: Tensor, encoding: Encoding) -> Tensor:
    """Eq. 7, `s (q - z)`, the float32 values of `Encoding.dequantize` bit for bit."""
    scale, zero = _constants(encoding, integers)
    return (integers.to(zero.dtype) - zero).float() * scale


@dataclass(frozen=True, kw_only=True)
class _Lattice:
    """Constants of one encoding on one device; `low` and `high` bound `q - z`, and are numbers where all channels have one zero point."""

    scale: Tensor
    low: Any  # a Tensor or a number: torch takes either, both of one kind
    high: Any
    wide: bool

    @staticmethod
    def of(encoding: Encoding, tensor: Tensor) -> _Lattice:
        scale, zero = _constants(encoding, tensor)
        low, high, wide = encoding.qmin - zero, encoding.qmax - zero, encoding.bits > 16
        if bool((zero == zero.flatten()[0]).all()):
            return _Lattice(scale=scale, low=float(low.flatten()[0]), high=float(high.flatten()[0]), wide=wide)
        return _Lattice(scale=scale, low=low, high=high, wide=wide)

    def steps(self, tensor: Tensor) -> Tensor:
        """`round(T / s)`, whole steps from zero before clamping, in memory of their own."""
        steps = torch.div(tensor.float(), self.scale).round_()
        return steps.double() if self.wide else steps

    def value(self, clamped: Tensor) -> Tensor:
        """`s (q - z)`, in the memory of the clamped steps where that can be."""
        return clamped.float().mul_(self.scale)


class _StraightThrough(torch.autograd.Function):
    """Eq. 6 and 7 forwards; backwards the identity, and zero where the value was clipped (clipped gradient, docs/method.md section 1)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lattice: _Lattice) -> Tensor:
        steps = lattice.steps(tensor)
        clamped = torch.clamp(steps, lattice.low, lattice.high)
        ctx.save_for_backward(steps == clamped)
        return lattice.value(clamped)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None


@final
class FakeQuantizer:
    """`T -> T_hat` for one encoding, fit for `Site.transform`; the constants are made once per device and number of axes.

    The values are those of Eq. 6 and 7 as `quantize` and `dequantize` write them, with `q - z` clamped instead of `q`: four passes over one
    piece of memory. Simulated networks spend much of their time here.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._lattices: dict[tuple[torch.device, int], _Lattice] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """`tensor` of any shape that has the encoding's axis -> the same shape, float32."""
        key = (tensor.device, tensor.ndim if self.encoding.axis is not None else 0)
        if key not in self._lattices:
            self._lattices[key] = _Lattice.of(self.encoding, tensor)
        lattice = self._lattices[key]
        if torch.is_grad_enabled() and tensor.requires_grad:
            return cast(Tensor, _StraightThrough.apply(tensor, lattice))  # type: ignore[no-untyped-call]
        return lattice.value(lattice.steps(tensor).clamp_(lattice.low, lattice.high))


def fake_quantize(tensor: Tensor, encoding: Encoding) -> Tensor:
    """`T_hat`: Eq. 6 then Eq. 7, with a straight-through gradient that is zero where the value is clipped."""
    return FakeQuantizer(encoding)(tensor)
