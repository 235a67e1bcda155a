"""LoRA, `B A`, and its Tucker form for kernels, `B (mid, down)`: two matrices as they are, exactly.

Sources: Hu 2021 (LoRA); Yeh 2023 (LyCORIS, Tucker decomposition of a kernel).
"""

from __future__ import annotations

import numpy as np

from quad.lora.adapter import LowRank
from quad.lora.config import AdapterConfig
from quad.lora.target import TargetLayer, Tensors, floats, update_scale


def lora_pair(target: TargetLayer, tensors: Tensors, config: AdapterConfig) -> LowRank:
    """The file's own matrices, Tucker's middle one made part of the first: `a[i, c, k, l] = sum_j mid[i, j, k, l] down[j, c]`."""
    layer = target.layer
    with np.errstate(over="ignore"):  # what overflows is refused once it is whole
        if "mid" in tensors:
            if not layer.is_convolution:
                raise target.error("lora_mid", "a convolution", "a linear layer")
            down = floats(target, tensors, "down", (None, layer.shape[1]))
            mid = floats(target, tensors, "mid", (None, down.shape[0], *layer.kernel))
            a = np.einsum("ijkl,jc->ickl", mid, down).astype(np.float32)
        else:
            a = floats(target, tensors, "down", (None, *layer.shape[1:]))
        rank = a.shape[0]
        b = floats(target, tensors, "up", (layer.outputs, rank, *((1, 1) if layer.is_convolution else ())))
        return LowRank(a, (b * np.float32(update_scale(target, tensors, config, rank))).astype(np.float32))
