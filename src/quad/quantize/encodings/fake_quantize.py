"""Torch twins of `quad.core.encoding`: the same integers, with gradients. Source: docs/method.md section 1, Eq. 4-7.

| symbol | here |
|---|---|
| T, T_hat | the tensor, and the tensor after quantizing and dequantizing |
| s, z | `scale`, `zero` |
"""

from __future__ import annotations

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


def _lattice(tensor: Tensor, encoding: Encoding, scale: Tensor, zero: Tensor) -> Tensor:
    """Eq. 6 in floating point: whole numbers in `[qmin, qmax]`."""
    return torch.clamp(_rounded(tensor, scale, zero), encoding.qmin, encoding.qmax)


def quantize(tensor: Tensor, encoding: Encoding) -> Tensor:
    """Eq. 6, the integers of `Encoding.quantize` bit for bit.

    Returns:
        int32, whatever the encoding's own type is: torch has few operations on 16-bit unsigned integers.
    """
    scale, zero = _constants(encoding, tensor)
    return _lattice(tensor, encoding, scale, zero).to(torch.int32)


def dequantize(integers: Tensor, encoding: Encoding) -> Tensor:
    """Eq. 7, `s (q - z)`, the float32 values of `Encoding.dequantize` bit for bit."""
    scale, zero = _constants(encoding, integers)
    return (integers.to(zero.dtype) - zero).float() * scale


class _StraightThrough(torch.autograd.Function):
    """Eq. 6 and 7 forwards; backwards the identity, and zero where the value was clipped (clipped gradient, docs/method.md section 1)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, encoding: Encoding, scale: Tensor, zero: Tensor) -> Tensor:
        ctx.save_for_backward(_inside(tensor, encoding, scale, zero))
        return (_lattice(tensor, encoding, scale, zero) - zero).float() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None


def _inside(tensor: Tensor, encoding: Encoding, scale: Tensor, zero: Tensor) -> Tensor:
    unclipped = _rounded(tensor, scale, zero)
    return (unclipped >= encoding.qmin) & (unclipped <= encoding.qmax)


@final
class FakeQuantizer:
    """`T -> T_hat` for one encoding, fit for `Site.transform`; the constants are made once per device and number of axes."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """`tensor` of any shape that has the encoding's axis -> the same shape, float32."""
        key = (tensor.device, tensor.ndim if self.encoding.axis is not None else 0)
        if key not in self._constants:
            self._constants[key] = _constants(self.encoding, tensor)
        scale, zero = self._constants[key]
        if torch.is_grad_enabled() and tensor.requires_grad:
            return cast(Tensor, _StraightThrough.apply(tensor, self.encoding, scale, zero))  # type: ignore[no-untyped-call]
        return (_lattice(tensor, self.encoding, scale, zero) - zero).float() * scale


def fake_quantize(tensor: Tensor, encoding: Encoding) -> Tensor:
    """`T_hat`: Eq. 6 then Eq. 7, with a straight-through gradient that is zero where the value is clipped."""
    return FakeQuantizer(encoding)(tensor)
