"""A layer that an adapter changes, and its tensors of the adapter, checked for shape and for numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.lora.config import AdapterConfig
from quad.lora.keys import Role
from quad.lora.low_rank import Matrix

Tensors = Mapping[Role, Tensor]
_SHOWN = {"down": "lora_A", "up": "lora_B", "mid": "lora_mid"}
_LARGEST = 1e15  # numbers of a converted update multiply, and are squared


@dataclass(frozen=True)
class Target:
    """A layer that an adapter changes, as the adapter sees it.

    Args:
        where: begins every message.
        path: the slot's.
        own_path: in its own model, as configs spell it.
    """

    where: str
    path: str
    own_path: str
    layer: nn.Linear | nn.Conv2d

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layer.weight.shape)

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Input channels times the kernel: the columns of the weight as a matrix."""
        return int(np.prod(self.shape[1:]))

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    def error(self, role: str, expected: object, found: object, then: str = "this LoRA was trained for another network") -> InputError:
        return InputError(mismatch(f"{self.where}, {self.path}.{_SHOWN.get(role, role)}", expected, found, then))

    def base(self) -> Matrix:
        """The layer's own weight `(out, n)`.

        Raises:
            UnsupportedError: there is a bundle, and no model.
        """
        if self.layer.weight.is_meta:
            expected = "a LoRA that needs nothing of the base, or the base itself"
            raise UnsupportedError(mismatch(f"{self.where}, {self.path}", expected, "DoRA, and no base", "give it: --base MODEL"))
        return self.layer.weight.detach().double().reshape(self.outputs, -1).numpy()


def floats(target: Target, tensors: Tensors, role: Role, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """One tensor in `shape`, None being any rank: files spell a 1x1 convolution with or without its last two axes.

    Raises:
        InputError: it is not there, its shape differs, a rank is 0, or there are NaN or Inf.
    """
    if role not in tensors:
        raise target.error(role, "all tensors of the module", "only " + ", ".join(tensors))
    tensor = tensors[role].float().numpy()
    core = tensor.shape
    while len(core) > len(shape) and core[-1] == 1:
        core = core[:-1]
    core = core + (1,) * (len(shape) - len(core))
    if len(core) != len(shape) or any(e is not None and e != c for e, c in zip(shape, core, strict=True)):
        shown = "(" + ", ".join("r" if e is None else str(e) for e in shape) + ")"
        raise target.error(role, shown, tuple(tensor.shape))
    if 0 in core:
        raise target.error(role, "rank >= 1", "rank 0")
    if not np.isfinite(tensor).all():
        raise target.error(role, "finite numbers", "NaN or Inf", "the training diverged; use another checkpoint")
    return np.ascontiguousarray(tensor.reshape(core))


def matrix(target: Target, tensors: Tensors, role: Role, shape: tuple[int | None, ...]) -> Matrix:
    """The same in double precision, for what is multiplied before it is cut."""
    found = floats(target, tensors, role, shape).astype(np.float64)
    if np.abs(found).max() > _LARGEST:
        raise target.error(role, f"numbers up to {_LARGEST:g}", f"{np.abs(found).max():g}", "the training diverged; use another checkpoint")
    return found


def _alpha(target: Target, tensors: Tensors) -> float | None:
    if "alpha" not in tensors:
        return None
    if tensors["alpha"].numel() != 1:
        raise target.error("alpha", "one number", tuple(tensors["alpha"].shape))
    return float(tensors["alpha"])


def update_scale(target: Target, tensors: Tensors, config: AdapterConfig, rank: int) -> float:
    """The factor of a module's update, from its alpha or from the config.

    Raises:
        InputError: alpha is no single finite number, or the config gives the module another rank.
    """
    alpha = _alpha(target, tensors)
    scale = config.rule.scale(target.own_path, rank, alpha)
    if not abs(scale) <= _LARGEST:
        raise InputError(mismatch(f"{target.where}, {target.path}", "a finite alpha", f"{alpha}", "save the adapter again"))
    return scale
