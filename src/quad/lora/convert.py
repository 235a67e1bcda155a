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

import numpy as np

from quad.lora.adapter import LowRank
from quad.lora.config import AdapterConfig
from quad.lora.kinds import WITH_DORA, Kind, has_magnitude, is_ambiguous, kinds_of
from quad.lora.layout import LayerLayout
from quad.lora.low_rank import Product, RankLimits, Update
from quad.lora.target import TargetLayer, Tensors
from quad.lora.updates.dora import dora_update

_FIRST, _LATENT_CHANNELS = "conv_in", 4


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A module's two matrices.

    Args:
        kind: where they are not the file's own, as the next two.
        energy: share of the module's update that they keep.
        enough: rank that would keep all that a conversion keeps.
        note: where not all of the layer gets them.
    """

    pair: LowRank
    kind: str = ""
    energy: float | None = None
    enough: int = 0
    note: str = ""


def convert(target: TargetLayer, tensors: Tensors, config: AdapterConfig, limits: RankLimits) -> Converted:
    """The two matrices of one module.

    Args:
        tensors: all that the file has for it.

    Raises:
        InputError: a tensor is missing, of another shape, or not finite, or two kinds are mixed.
        UnsupportedError: alpha with a full difference.
    """
    kind = _kind(target, tensors)
    decomposed = has_magnitude(tensors)
    name = kind.name + (WITH_DORA if decomposed else "")
    _require_config(target, config, kind, name)
    update = kind.update(target, tensors, config)
    if isinstance(update, LowRank):
        if not decomposed:
            return Converted(pair=_finite(target, update))
        update = _in_double(target, update)
    if decomposed:
        update = dora_update(target, tensors, update)
    cut = update.cut(limits.max_rank or limits.converted_rank, limits.converted_energy)
    pair = LowRank(cut.a.astype(np.float32), cut.b.astype(np.float32))
    return Converted(pair=_finite(target, shaped(pair, target.layer.shape)), kind=name, energy=cut.energy, enough=cut.enough)


def _kind(target: TargetLayer, tensors: Tensors) -> Kind:
    """The one kind that the tensors make.

    Raises:
        InputError: none, or several, or a tensor would be passed over.
    """
    kinds = kinds_of(tensors)
    if len(kinds) != 1 or is_ambiguous(kinds[0], tensors):
        raise target.error("*", "the tensors of one kind of adapter", ", ".join(tensors))
    return kinds[0]


def _require_config(target: TargetLayer, config: AdapterConfig, kind: Kind, name: str) -> None:
    """The config, where there is one, is of the kind of adapter that the tensors are."""
    if config.present and config.kind != kind.peft_type:
        raise target.error("*", f"tensors of {config.kind} (peft_type)", name, "use the config saved with them")
    if config.dora and name == kind.name:
        raise target.error("*", "a magnitude (use_dora)", f"{name} without one", "save the adapter again")


def _in_double(target: TargetLayer, pair: LowRank) -> Update:
    """A pair as a product of two matrices, in double precision."""
    return Product(pair.b.reshape(target.layer.outputs, -1).astype(np.float64), pair.a.reshape(pair.rank, -1).astype(np.float64))


def latent_only(path: str, layer: LayerLayout) -> LayerLayout | None:
    """The first convolution as a base without further input channels has it; None for any other layer, and where it has no others.

    A base for inpainting or editing reads the latent first, then a mask or a picture, and takes LoRA of the plain base.
    """
    if path != _FIRST or layer.shape[1] <= _LATENT_CHANNELS:
        return None
    weight = layer.weight
    shape = (layer.shape[0], _LATENT_CHANNELS, *layer.kernel)
    return LayerLayout(shape, None if weight is None else lambda: weight()[:, :_LATENT_CHANNELS])


def widened_inputs(converted: Converted, layer: LayerLayout) -> Converted:
    """An update of a layer's first input channels as one of the whole layer: zeros for the others."""
    down = converted.pair.a
    padding = [(0, layer.shape[1] - down.shape[1]) if axis == 1 else (0, 0) for axis in range(down.ndim)]
    note = f"{_FIRST}: trained on {down.shape[1]} of the base's {layer.shape[1]} input channels, the others stay as they are"
    return replace(converted, pair=replace(converted.pair, a=np.pad(down, padding)), note=note)


def shaped(pair: LowRank, shape: tuple[int, ...]) -> LowRank:
    """Matrices `(r, n)` and `(out, r)` with the axes of a layer's weight `shape`."""
    return replace(pair, a=pair.a.reshape(-1, *shape[1:]), b=pair.b.reshape(*pair.b.shape, *(1,) * (len(shape) - 2)))


def _finite(target: TargetLayer, pair: LowRank) -> LowRank:
    if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
        raise target.error("*", "finite numbers", "NaN or Inf in the product", "the training diverged; use another checkpoint")
    return pair
