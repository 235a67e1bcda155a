"""A layer that an adapter changes, and its tensors of the adapter, checked for shape and for numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.lora.config import AdapterConfig
from quad.lora.layout import LayerLayout
from quad.lora.low_rank import Matrix
from quad.lora.tensors import Role, StoredTensor

Tensors = Mapping[Role, StoredTensor]  # all that a file has for one module
_SPELLED = {"down": "lora_A", "up": "lora_B", "mid": "lora_mid"}
_LARGEST = 1e15  # numbers of a converted update multiply, and are squared


@dataclass(frozen=True, kw_only=True)
class TargetLayer:
    """A layer that an adapter changes, as the adapter sees it.

    Args:
        where: begins every message.
        path: the slot's.
        own_path: in its own model, as configs spell it.
        layer: shape of its weight, and the weight itself where there is a model.
    """

    where: str
    path: str
    own_path: str
    layer: LayerLayout

    def error(self, role: Role, expected: object, actual: object, remedy: str = "this LoRA was trained for another network") -> InputError:
        """A message about one tensor of the module: what was expected, what it is, what to do."""
        return InputError(mismatch(f"{self.where}, {self.path}.{_SPELLED.get(role, role)}", expected, actual, remedy))

    def base(self) -> Matrix:
        """The layer's own weight `(out, n)`, `n` its inputs times its kernel.

        Raises:
            UnsupportedError: there is a bundle, and no model.
        """
        if self.layer.weight is None:
            expected = "a LoRA that needs nothing of the base, or the base itself"
            raise UnsupportedError(mismatch(f"{self.where}, {self.path}", expected, "DoRA, and no base", "give it: --base MODEL"))
        return self.layer.weight().astype(np.float64).reshape(self.layer.outputs, -1)


def floats(target: TargetLayer, tensors: Tensors, role: Role, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """One tensor in `shape`, None being any rank: files spell a 1x1 convolution with or without its last two axes.

    Raises:
        InputError: it is not there, its shape differs, a rank is 0, or there are NaN or Inf.
    """
    if role not in tensors:
        raise target.error(role, "all tensors of the module", "only " + ", ".join(tensors))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        values: NDArray[np.float32] = tensors[role].values().astype(np.float32, copy=False)
    core = values.shape
    while len(core) > len(shape) and core[-1] == 1:
        core = core[:-1]
    core = core + (1,) * (len(shape) - len(core))
    if len(core) != len(shape) or any(e is not None and e != c for e, c in zip(shape, core, strict=True)):
        expected = "(" + ", ".join("r" if e is None else str(e) for e in shape) + ")"
        raise target.error(role, expected, values.shape)
    if 0 in core:
        raise target.error(role, "rank >= 1", "rank 0")
    if not np.isfinite(values).all():
        raise target.error(role, "finite numbers", "NaN or Inf", "the training diverged; use another checkpoint")
    return np.ascontiguousarray(values.reshape(core))


def matrix(target: TargetLayer, tensors: Tensors, role: Role, shape: tuple[int | None, ...]) -> Matrix:
    """The same in double precision, for what is multiplied before it is cut.

    Raises:
        InputError: as `floats`, or numbers so large that their products would overflow.
    """
    values = floats(target, tensors, role, shape).astype(np.float64)
    if (largest := np.abs(values).max()) > _LARGEST:
        raise target.error(role, f"numbers up to {_LARGEST:g}", f"{largest:g}", "the training diverged; use another checkpoint")
    return values


def _alpha(target: TargetLayer, tensors: Tensors) -> float | None:
    if "alpha" not in tensors:
        return None
    if tensors["alpha"].size != 1:
        raise target.error("alpha", "one number", tensors["alpha"].shape)
    return float(tensors["alpha"].values().item())


def update_scale(target: TargetLayer, tensors: Tensors, config: AdapterConfig, rank: int) -> float:
    """The factor of a module's update, from its alpha or from the config.

    Raises:
        InputError: alpha is no single finite number, or the config gives the module another rank.
    """
    alpha = _alpha(target, tensors)
    scale = config.rule.scale(target.own_path, rank, alpha)
    if not abs(scale) <= _LARGEST:
        raise InputError(mismatch(f"{target.where}, {target.path}", "a finite alpha", f"{alpha}", "save the adapter again"))
    return scale
