"""LoKr: `kron(w1, w2)`, each factor written out or a product itself. Source: Yeh 2023 (LyCORIS)."""

from __future__ import annotations

import numpy as np

from quad.lora.config import AdapterConfig
from quad.lora.low_rank import Kronecker, Matrix, Update
from quad.lora.target import TargetLayer, Tensors, matrix, update_scale


def lokr_update(target: TargetLayer, tensors: Tensors, config: AdapterConfig) -> Update:
    """The Kronecker product; scaled by 1 where neither factor has a rank of its own."""
    layer = target.layer
    first, first_rank = _first(target, tensors)
    (rows, rows_left), (channels, channels_left) = divmod(layer.outputs, first.shape[0]), divmod(layer.shape[1], first.shape[1])
    if rows_left or channels_left:
        raise target.error("lokr_w1", f"sides that divide {layer.outputs} and {layer.shape[1]}", first.shape)
    second, second_rank = _second(target, tensors, rows, channels)
    rank = second_rank or first_rank
    if config.kind == "LOKR":  # PEFT scales by the config's rank, whatever the tensors have
        scale = config.rule.scale(target.own_path, rank, None, check=False)
    else:
        scale = update_scale(target, tensors, config, rank) if rank else 1.0
    return Kronecker(scale * first, second)


def _first(target: TargetLayer, tensors: Tensors) -> tuple[Matrix, int]:
    """`w1 (a, b)` and its own rank, 0 where it is written out."""
    if "lokr_w1" in tensors:
        return matrix(target, tensors, "lokr_w1", (None, None)), 0
    left = matrix(target, tensors, "lokr_w1_a", (None, None))
    return left @ matrix(target, tensors, "lokr_w1_b", (left.shape[1], None)), left.shape[1]


def _second(target: TargetLayer, tensors: Tensors, rows: int, channels: int) -> tuple[Matrix, int]:
    """`w2 (c, d, kernel)` as a matrix, and its own rank, 0 where it is written out."""
    kernel = target.layer.kernel
    if "lokr_w2" in tensors:
        shape = (rows, channels, *kernel) if tensors["lokr_w2"].ndim > 2 else (rows, channels * int(np.prod(kernel)))
        return matrix(target, tensors, "lokr_w2", shape).reshape(rows, -1), 0
    if "lokr_t2" in tensors:
        left = matrix(target, tensors, "lokr_w2_a", (None, rows))
        right = matrix(target, tensors, "lokr_w2_b", (None, channels))
        core = matrix(target, tensors, "lokr_t2", (left.shape[0], right.shape[0], *kernel))
        return np.einsum("ijkl,ip,jc->pckl", core, left, right, optimize=True).reshape(rows, -1), left.shape[0]
    left = matrix(target, tensors, "lokr_w2_a", (rows, None))
    right = matrix(target, tensors, "lokr_w2_b", (left.shape[1], channels * int(np.prod(kernel))))
    return left @ right, left.shape[1]
