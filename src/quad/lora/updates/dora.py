"""DoRA, over any other kind: `m (W + D) / |W + D| - W`. Source: Liu 2024 (DoRA)."""

from __future__ import annotations

import numpy as np

from quad.lora.low_rank import Dense, Update
from quad.lora.target import TargetLayer, Tensors, matrix


def dora_update(target: TargetLayer, tensors: Tensors, update: Update) -> Update:
    """The changed weight with norms that were learned, minus the base.

    PEFT's magnitude has one norm per output. LyCORIS' `dora_scale` had one per input, `(1, in, ...)`, before it had one per output.

    Args:
        update: of the kind that DoRA stands over, `D`.
    """
    layer = target.layer
    role = "magnitude" if "magnitude" in tensors else "dora_scale"
    stored = tensors[role]
    per_input = role == "dora_scale" and stored.ndim > 1 and stored.shape[0] == 1 != layer.outputs
    count = layer.shape[1] if per_input else layer.outputs
    if stored.size != count:
        raise target.error(role, f"{count} norms", stored.shape)
    magnitude = matrix(target, {role: stored.flat()}, role, (count,))
    base = target.base()
    changed = base + update.dense()
    # One norm: over a whole row, or over a channel's columns in all rows.
    parts = changed.reshape(layer.outputs, layer.shape[1], -1)
    norms = np.sqrt((parts**2).sum(axis=(0, 2) if per_input else (1, 2)))
    factor = np.divide(magnitude, norms, out=np.zeros_like(magnitude), where=norms > 0)
    return Dense((parts * (factor[None, :, None] if per_input else factor[:, None, None])).reshape(changed.shape) - base)
