"""Every kind of adapter as two matrices per module: as they are where that is exact, by singular values where it is not.

    LoRA   b a                                          as it is
    Tucker b (mid, down): one kernel from two           exact
    LoHa   (w1_a w1_b) * (w2_a w2_b)                    rank up to r^2, cut
    LoKr   kron(w1, w2)                                 cut
    full   W' - W                                       cut
    DoRA   m (W + D) / |W + D| - W, D any of the above  cut

All but full are scaled by `alpha / r` (LoKr by 1 where neither factor has a rank of its own). Sources: Hu 2021; Hyeon-Woo 2021 (LoHa),
Yeh 2023 (LoKr, Tucker; LyCORIS), Liu 2024 (DoRA).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from torch import nn

from quad.core.errors import UnsupportedError, mismatch
from quad.lora.config import AdapterConfig
from quad.lora.float_adapter import LowRank
from quad.lora.keys import Role
from quad.lora.kinds import AND, LOHA, LOKR, LORA, TUCKER, WITH_DORA, kind_of
from quad.lora.low_rank import CONVERTED_RANK, KEPT_ENERGY, Dense, Kronecker, Matrix, Product, RankLimits, Update
from quad.lora.target import Target, Tensors, floats, matrix, update_scale

_PEFT_KINDS = {LOHA: "LOHA", LOKR: "LOKR"}
# Two ways to say one thing: of a module that has both, one would be passed over.
_EITHER: tuple[tuple[Role, Role], ...] = (
    ("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b"), ("lokr_w2", "lokr_t2"),
    ("magnitude", "dora_scale"),
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A module's two matrices; `kind` and `energy` where they are not the file's own."""

    pair: LowRank
    kind: str = ""
    energy: float | None = None


def _lora(target: Target, tensors: Tensors, config: AdapterConfig) -> LowRank:
    """The file's own matrices, Tucker's middle one made part of the first: `a[i, c, k, l] = sum_j mid[i, j, k, l] down[j, c]`."""
    conv = isinstance(target.layer, nn.Conv2d)
    with np.errstate(over="ignore"):  # what overflows is refused once it is whole
        return _lora_pair(target, tensors, config, conv)


def _lora_pair(target: Target, tensors: Tensors, config: AdapterConfig, conv: bool) -> LowRank:
    if "mid" in tensors:
        if not conv:
            raise target.error("lora_mid", "a convolution", "a linear layer")
        down = floats(target, tensors, "down", (None, target.shape[1]))
        mid = floats(target, tensors, "mid", (None, down.shape[0], *target.kernel))
        a = np.einsum("ijkl,jc->ickl", mid, down).astype(np.float32)
    else:
        a = floats(target, tensors, "down", (None, *target.shape[1:]))
    rank = a.shape[0]
    b = floats(target, tensors, "up", (target.outputs, rank, *((1, 1) if conv else ())))
    return LowRank(a, (b * np.float32(update_scale(target, tensors, config, rank))).astype(np.float32))


def _hada_factors(target: Target, tensors: Tensors, number: str) -> tuple[Matrix, Matrix]:
    """One of LoHa's two products, as `(out, r)` and `(r, n)`; with a Tucker kernel its factors are transposed and the kernel goes in."""
    w_a, w_b, t = cast("tuple[Role, Role, Role]", (f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}"))
    if t not in tensors:
        a = matrix(target, tensors, w_a, (target.outputs, None))
        return a, matrix(target, tensors, w_b, (a.shape[1], target.inputs))
    a = matrix(target, tensors, w_a, (None, target.outputs))
    b = matrix(target, tensors, w_b, (None, target.shape[1]))
    core = matrix(target, tensors, t, (a.shape[0], b.shape[0], *target.kernel))
    return a.T, np.einsum("ijkl,jc->ickl", core, b).reshape(a.shape[0], -1)


def _hada(target: Target, tensors: Tensors, config: AdapterConfig) -> Update:
    """`(P1 Q1) * (P2 Q2)`: the entries' product is a product of matrices of rank r^2, of all pairs of columns and of rows."""
    (p1, q1), (p2, q2) = (_hada_factors(target, tensors, number) for number in ("1", "2"))
    scale = update_scale(target, tensors, config, q1.shape[0])
    if p1.shape[1] * p2.shape[1] >= min(target.outputs, target.inputs):
        return Dense(scale * (p1 @ q1) * (p2 @ q2))
    b = (p1[:, :, None] * p2[:, None, :]).reshape(target.outputs, -1)
    return Product(scale * b, (q1[:, None, :] * q2[None, :, :]).reshape(-1, target.inputs))


def _kron_first(target: Target, tensors: Tensors) -> tuple[Matrix, int]:
    """`w1 (a, b)` and its own rank, 0 where it is written out."""
    if "lokr_w1" in tensors:
        return matrix(target, tensors, "lokr_w1", (None, None)), 0
    left = matrix(target, tensors, "lokr_w1_a", (None, None))
    return left @ matrix(target, tensors, "lokr_w1_b", (left.shape[1], None)), left.shape[1]


def _kron_second(target: Target, tensors: Tensors, rows: int, channels: int) -> tuple[Matrix, int]:
    """`w2 (c, d, kernel)` as a matrix, and its own rank, 0 where it is written out."""
    if "lokr_w2" in tensors:
        shape = (rows, channels, *target.kernel) if tensors["lokr_w2"].ndim > 2 else (rows, channels * int(np.prod(target.kernel)))
        return matrix(target, tensors, "lokr_w2", shape).reshape(rows, -1), 0
    if "lokr_t2" in tensors:
        left = matrix(target, tensors, "lokr_w2_a", (None, rows))
        right = matrix(target, tensors, "lokr_w2_b", (None, channels))
        core = matrix(target, tensors, "lokr_t2", (left.shape[0], right.shape[0], *target.kernel))
        return np.einsum("ijkl,ip,jc->pckl", core, left, right, optimize=True).reshape(rows, -1), left.shape[0]
    left = matrix(target, tensors, "lokr_w2_a", (rows, None))
    right = matrix(target, tensors, "lokr_w2_b", (left.shape[1], channels * int(np.prod(target.kernel))))
    return left @ right, left.shape[1]


def _kron(target: Target, tensors: Tensors, config: AdapterConfig) -> Update:
    first, first_rank = _kron_first(target, tensors)
    (rows, rest), (channels, left_over) = divmod(target.outputs, first.shape[0]), divmod(target.shape[1], first.shape[1])
    if rest or left_over:
        raise target.error("lokr_w1", f"sides that divide {target.outputs} and {target.shape[1]}", first.shape)
    second, second_rank = _kron_second(target, tensors, rows, channels)
    if config.kind == "LOKR":  # PEFT scales by the config's rank, whatever the tensors have
        scale = config.rule.scale(target.own_path, second_rank or first_rank, None, check=False)
    else:
        rank = second_rank or first_rank
        scale = update_scale(target, tensors, config, rank) if rank else 1.0
    return Kronecker(scale * first, second)


def _full(target: Target, tensors: Tensors) -> Update:
    if "alpha" in tensors:
        raise UnsupportedError(
            mismatch(f"{target.where}, {target.path}", "a weight difference as it is", "alpha with it", "leave alpha out")
        )
    return Dense(matrix(target, tensors, "diff", target.shape).reshape(target.outputs, -1))


def _decomposed(target: Target, tensors: Tensors, update: Update) -> Update:
    """DoRA: the changed weight with norms that were learned, minus the base.

    PEFT's magnitude has one norm per output. LyCORIS' `dora_scale` had one per input, `(1, in, ...)`, before it had one per output.
    """
    columns = "magnitude" not in tensors and tensors["dora_scale"].ndim > 1 and tensors["dora_scale"].shape[0] == 1 != target.outputs
    role: Role = "magnitude" if "magnitude" in tensors else "dora_scale"
    count = target.shape[1] if columns else target.outputs
    if tensors[role].numel() != count:
        raise target.error(role, f"{count} norms", tuple(tensors[role].shape))
    norms = matrix(target, {role: tensors[role].reshape(-1)}, role, (count,))
    base = target.base()
    changed = base + update.dense()
    # One norm: over a whole row, or over a channel's columns in all rows.
    parts = changed.reshape(target.outputs, target.shape[1], -1)
    found = np.sqrt((parts**2).sum(axis=(0, 2) if columns else (1, 2)))
    factor = np.divide(norms, found, out=np.zeros_like(norms), where=found > 0)
    return Dense((parts * (factor[None, :, None] if columns else factor[:, None, None])).reshape(changed.shape) - base)


def _updates(target: Target, tensors: Tensors, config: AdapterConfig, kind: str) -> LowRank | Update:
    if kind in (LORA, TUCKER):
        return _lora(target, tensors, config)
    if kind == LOHA:
        return _hada(target, tensors, config)
    return _kron(target, tensors, config) if kind == LOKR else _full(target, tensors)


def _require_config(target: Target, config: AdapterConfig, kind: str, plain: str) -> None:
    """The config, where there is one, is of the kind of adapter that the tensors are."""
    if config.given and config.kind != _PEFT_KINDS.get(plain, "LORA"):
        raise target.error("*", f"tensors of {config.kind} (peft_type)", kind, "use the config saved with them")
    if config.dora and kind == plain:
        raise target.error("*", "a magnitude (use_dora)", f"{kind} without one", "save the adapter again")


def convert(target: Target, tensors: Tensors, config: AdapterConfig, limits: RankLimits) -> Converted:
    """The two matrices of one module.

    Args:
        tensors: all that the file has for it.

    Raises:
        InputError: a tensor is missing, of another shape, or not finite, or two kinds are mixed.
        UnsupportedError: alpha with a full difference.
    """
    kind = kind_of(tensors)
    plain = kind.removesuffix(WITH_DORA)
    twice = any(one in tensors and other in tensors for one, other in _EITHER)
    if not kind or AND in plain or twice or ("mid" in tensors and plain != TUCKER):
        raise target.error("*", "the tensors of one kind of adapter", ", ".join(tensors))
    _require_config(target, config, kind, plain)
    found = _updates(target, tensors, config, plain)
    if kind == plain and isinstance(found, LowRank):
        return Converted(_finite(target, found))
    if isinstance(found, LowRank):
        found = Product(found.b.reshape(target.outputs, -1).astype(np.float64), found.a.reshape(found.rank, -1).astype(np.float64))
    if kind != plain:
        found = _decomposed(target, tensors, found)
    cut = found.cut(limits.max_rank or CONVERTED_RANK, KEPT_ENERGY)
    pair = LowRank(cut.a.astype(np.float32), cut.b.astype(np.float32))
    return Converted(_finite(target, shaped(pair, target.shape)), kind, cut.energy)


def shaped(pair: LowRank, shape: tuple[int, ...]) -> LowRank:
    """Matrices `(r, n)` and `(out, r)` with the axes of a layer's weight `shape`."""
    return replace(pair, a=pair.a.reshape(-1, *shape[1:]), b=pair.b.reshape(*pair.b.shape, *(1,) * (len(shape) - 2)))


def _finite(target: Target, pair: LowRank) -> LowRank:
    if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
        raise target.error("*", "finite numbers", "NaN or Inf in the product", "the training diverged; use another checkpoint")
    return pair
