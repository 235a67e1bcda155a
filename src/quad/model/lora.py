"""Adapters as floats: a LoRA file of any dialect becomes two matrices per module, alpha already folded into B."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quad.core.errors import InputError, mismatch
from quad.model.lora_file import LoraFile, open_lora
from quad.model.lora_keys import Role, network_paths, parse_key, refuse_other_kinds

_LISTED_KEYS = 8


@dataclass(frozen=True)
class LowRank:
    """One module's update `B A`: `a (r, in[, kh, kw])`, `b (out, r[, 1, 1])`, float32, the scale inside b."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class FloatAdapter:
    """One task's LoRA: module path to matrices, its largest rank, and the digest of the file it came from."""

    name: str
    weights: dict[str, LowRank]
    rank: int
    digest: str


@dataclass(frozen=True)
class _Target:
    """A layer of the network, as a LoRA sees it; `where` begins every message about it."""

    where: str
    path: str
    inputs: tuple[int, ...]
    outputs: int
    conv: bool

    def shape_error(self, role: str, expected: object, found: object) -> InputError:
        return InputError(mismatch(f"{self.where}, {self.path}.{role}", expected, found, "this LoRA was trained for another network"))


def _target(where: str, path: str, layer: nn.Module) -> _Target:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return _Target(where, path, tuple(weight.shape[1:]), int(weight.shape[0]), isinstance(layer, nn.Conv2d))


def _fit(target: _Target, role: str, tensor: NDArray[np.float32], expected: tuple[int | None, ...]) -> NDArray[np.float32]:
    """`tensor` in the layer's own number of axes: files spell a 1x1 convolution with or without its last two.

    Raises:
        InputError: the shape differs from `expected` (None is any rank), the rank is 0, or there are NaN or Inf.
    """
    core = tensor.shape
    while len(core) > 2 and len(core) > len(expected) and core[-1] == 1:
        core = core[:-1]
    core = core + (1,) * (len(expected) - len(core))
    if len(core) != len(expected) or any(e is not None and e != c for e, c in zip(expected, core, strict=True)):
        shown = "(" + ", ".join("r" if e is None else str(e) for e in expected) + ")"
        raise target.shape_error(role, shown, tuple(tensor.shape))
    if 0 in core:
        raise target.shape_error(role, "rank >= 1", "rank 0")
    if not np.isfinite(tensor).all():
        raise InputError(
            mismatch(
                f"{target.where}, {target.path}.{role}", "finite numbers", "NaN or Inf", "the training diverged; use another checkpoint"
            )
        )
    return np.ascontiguousarray(tensor.reshape(core))


def _low_rank(target: _Target, found: dict[Role, Tensor], file: LoraFile) -> LowRank:
    if missing := [role for role in ("down", "up") if role not in found]:
        raise target.shape_error(missing[0], "both matrices of the module", "only " + ", ".join(found))
    if "alpha" in found and found["alpha"].numel() != 1:
        raise target.shape_error("alpha", "one number", tuple(found["alpha"].shape))
    alpha = float(found["alpha"]) if "alpha" in found else None
    a = _fit(target, "lora_A", found["down"].float().numpy(), (None, *target.inputs))
    rank = int(a.shape[0])
    b = _fit(target, "lora_B", found["up"].float().numpy(), (target.outputs, rank, *((1, 1) if target.conv else ())))
    scaled = (b * np.float32(file.rule.scale(target.path, rank, alpha))).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise InputError(mismatch(f"{target.where}, {target.path}", "a finite alpha", f"{alpha}", "save the adapter again"))
    return LowRank(a, scaled)


def _group(file: LoraFile, layers: dict[str, nn.Module]) -> tuple[dict[str, dict[Role, Tensor]], list[str]]:
    """Tensors by module path and role, and the keys that match no module."""
    groups: dict[str, dict[Role, Tensor]] = {}
    unused: list[str] = []
    spellings = network_paths(layers)
    for name, tensor in file.tensors.items():
        key = parse_key(name)
        path = None if key is None else key.resolve(spellings)
        if key is None or path is None:
            unused.append(name)
        else:
            groups.setdefault(path, {})[key.role] = tensor
    return groups, unused


def read_lora(name: str, path: Path, network: nn.Module, allow_unused: bool = False) -> FloatAdapter:
    """Read a LoRA file (or PEFT / diffusers directory) for `network`.

    Args:
        name: the adapter's name.
        network: the U-Net it was trained on; its Linear and Conv2d paths give the keys their meaning.
        allow_unused: pass over keys that match nothing (`--allow-unused-keys`), as long as some match.

    Raises:
        InputError: missing, pickled or truncated file, keys that match nothing, wrong shapes, rank 0, NaN or Inf.
        UnsupportedError: DoRA, LoHa, LoKr, Tucker and the like, or text-encoder LoRA.
    """
    file = open_lora(path)
    where = f"adapter {name!r} ({file.path.name})"
    refuse_other_kinds(file.tensors)
    layers: dict[str, nn.Module] = {p: m for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    groups, unused = _group(file, layers)
    if not groups or (unused and not allow_unused):
        listed = ", ".join(unused[:_LISTED_KEYS]) + (f" and {len(unused) - _LISTED_KEYS} more" if len(unused) > _LISTED_KEYS else "")
        then = "pass --allow-unused-keys to leave them out" if groups else "is it for another base model?"
        found = f"{len(unused)} of {len(file.tensors)} match nothing: {listed}" if unused else "no tensors at all"
        raise InputError(mismatch(where, "every key to match a Linear or Conv2d of the U-Net", found, then))
    weights = {p: _low_rank(_target(where, p, layer), groups[p], file) for p, layer in layers.items() if p in groups}
    return FloatAdapter(name, weights, max(pair.rank for pair in weights.values()), file.digest)
