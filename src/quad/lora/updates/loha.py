"""LoHa: `(w1_a w1_b) * (w2_a w2_b)`, entry by entry. Sources: Hyeon-Woo 2021 (FedPara); Yeh 2023 (LyCORIS, its Tucker form)."""

from __future__ import annotations

import numpy as np

from quad.lora.config import AdapterConfig
from quad.lora.low_rank import Dense, Matrix, Product, Update
from quad.lora.target import TargetLayer, Tensors, matrix, update_scale


def loha_update(target: TargetLayer, tensors: Tensors, config: AdapterConfig) -> Update:
    """`(P1 Q1) * (P2 Q2)`: the entries' product is a product of matrices of rank r^2, of all pairs of columns and of rows."""
    (p1, q1), (p2, q2) = (_factors(target, tensors, number) for number in ("1", "2"))
    outputs, inputs = target.layer.outputs, target.layer.inputs
    scale = update_scale(target, tensors, config, q1.shape[0])
    if p1.shape[1] * p2.shape[1] >= min(outputs, inputs):
        return Dense(scale * (p1 @ q1) * (p2 @ q2))
    b = (p1[:, :, None] * p2[:, None, :]).reshape(outputs, -1)
    return Product(scale * b, (q1[:, None, :] * q2[None, :, :]).reshape(-1, inputs))


def _factors(target: TargetLayer, tensors: Tensors, number: str) -> tuple[Matrix, Matrix]:
    """One of the two products, as `(out, r)` and `(r, n)`; with a Tucker kernel its factors are transposed and the kernel goes in."""
    layer, w_a, w_b, t = target.layer, f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}"
    if t not in tensors:
        a = matrix(target, tensors, w_a, (layer.outputs, None))
        return a, matrix(target, tensors, w_b, (a.shape[1], layer.inputs))
    a = matrix(target, tensors, w_a, (None, layer.outputs))
    b = matrix(target, tensors, w_b, (None, layer.shape[1]))
    core = matrix(target, tensors, t, (a.shape[0], b.shape[0], *layer.kernel))
    return a.T, np.einsum("ijkl,jc->ickl", core, b).reshape(a.shape[0], -1)
