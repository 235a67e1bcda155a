"""A full weight difference, `W' - W`, as LyCORIS' `full` and extractions write it."""

from __future__ import annotations

from quad.core.errors import UnsupportedError, mismatch
from quad.lora.config import AdapterConfig
from quad.lora.low_rank import Dense, Update
from quad.lora.target import TargetLayer, Tensors, matrix


def full_update(target: TargetLayer, tensors: Tensors, config: AdapterConfig) -> Update:
    """The difference as it is; nothing scales it.

    Raises:
        UnsupportedError: there is an alpha, which has no meaning here.
    """
    if "alpha" in tensors:
        raise UnsupportedError(
            mismatch(f"{target.where}, {target.path}", "a weight difference as it is", "alpha with it", "leave alpha out")
        )
    return Dense(matrix(target, tensors, "diff", target.layer.shape).reshape(target.layer.outputs, -1))
