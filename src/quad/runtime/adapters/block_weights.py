"""Weights of an adapter that differ from block to block, as diffusers' `set_adapters` takes them.

A number is for all of a network; `{"unet": {"down": 0.5, "mid": 1, "up": {"block_1": [0.2, 0.4]}}, "text_encoder": 0.8}` is for its parts:
`down` and `up` are a number for all of their blocks, or `block_I`, and that a number for the block or one for each of its layers. Blocks
and layers that are not named have 1. A layer is an attention in diffusers; here what else a block has is weighted with it.
Source: diffusers, "Load LoRAs for inference".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from quad.core.errors import UsageError, mismatch
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable

_BLOCK = re.compile(r"block_(0|[1-9][0-9]{0,2})")
_BLOCK_PATH = re.compile(r"(?:down|up)_blocks\.(?:[0-9]+\.)?|mid_block\.")
_EXPECTED = 'numbers, as in {"unet": {"down": 0.5, "mid": 1, "up": {"block_1": [0.2, 0.4]}}, "text_encoder": 0.8}'


@dataclass(frozen=True)
class BlockWeights:
    """The weight of each part: prefix of a module path -> weight. The longest prefix that fits rules; 1 where none does."""

    by_prefix: tuple[tuple[str, float], ...]

    def at(self, path: str) -> float:
        """The weight at one slot."""
        fitting = [(len(prefix), weight) for prefix, weight in self.by_prefix if f"{path}.".startswith(prefix)]
        return max(fitting, default=(0, 1.0))[1]

    def unmatched(self, paths: Iterable[str]) -> list[str]:
        """The blocks that were named and hold none of these slots; of a block's layers the block alone."""
        blocks = dict.fromkeys(block[0] for prefix, _ in self.by_prefix if (block := _BLOCK_PATH.match(prefix)))
        listed = [f"{path}." for path in paths]
        return [block for block in blocks if not any(path.startswith(block) for path in listed)]

    def __bool__(self) -> bool:
        """Whether anything of the adapter is used."""
        return any(weight for _, weight in self.by_prefix) or "" not in dict(self.by_prefix)

    def __format__(self, spec: str) -> str:
        """As it is shown in notes."""
        return "by block"


Weight: TypeAlias = float | BlockWeights


def weight_at(weight: Weight, path: str) -> float:
    """The weight of an adapter at one slot."""
    return weight.at(path) if isinstance(weight, BlockWeights) else weight


def largest_weight(weight: Weight, slots: SlotTable) -> float:
    """The largest magnitude of an adapter's weight at any slot."""
    if not isinstance(weight, BlockWeights):
        return abs(weight)
    return max((abs(weight.at(slot.path)) for slot in slots.slots), default=0.0)


def read_weight(value: Any) -> Weight:
    """A number, or a mapping as described above.

    Raises:
        UsageError: something else, or a number that is not finite.
    """
    if isinstance(value, BlockWeights):
        return value
    if not isinstance(value, Mapping):
        return _number(value, "weight")
    parts: list[tuple[str, float]] = []
    for network, scale in value.items():
        if network == TEXT_ENCODER:
            parts.append((f"{TEXT_ENCODER}.", _number(scale, network)))
        elif network == UNET:
            parts += _unet(scale) if isinstance(scale, Mapping) else [("", _number(scale, network))]
        else:
            raise _odd(str(network))
    # A number for the U-Net is not one for the text encoder.
    whole = "" in dict(parts) and f"{TEXT_ENCODER}." not in dict(parts)
    return BlockWeights((*parts, (f"{TEXT_ENCODER}.", 1.0)) if whole else tuple(parts))


def adapter_weights(names: Sequence[str], weights: Any) -> dict[str, Weight]:
    """Adapter name -> weight; 1 where none is given.

    Args:
        weights: one for all, or a sequence of one each: a number, or a mapping by block (`quad.runtime.adapters.block_weights`).

    Raises:
        UsageError: a name twice, another number of weights, or a weight that is not finite.
    """
    one_for_all = isinstance(weights, Mapping) or not isinstance(weights, Iterable) or getattr(weights, "ndim", 1) == 0
    listed = [1.0 if weights is None else weights] * len(names) if one_for_all else list(weights)
    finite = all(_is_finite(weight) for weight in listed if isinstance(weight, Real))
    if len(listed) != len(names) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names) or not finite:
        expected = "each name once, with one finite weight each"
        raise UsageError(mismatch("set_adapters", expected, f"{list(names)}, {listed}", "mend the call"))
    return dict(zip(names, map(read_weight, listed), strict=True))


def _unet(value: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for part, scale in value.items():
        if part == "mid":
            yield "mid_block.", _number(scale, "mid")
        elif part in ("down", "up"):
            yield from _blocks(f"{part}_blocks.", scale)
        else:
            raise _odd(f"unet, {part}")


def _blocks(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if not isinstance(value, Mapping):
        yield prefix, _number(value, prefix)
        return
    for block, scale in value.items():
        number = _BLOCK.fullmatch(str(block))
        if number is None:
            raise _odd(f"{prefix}{block}")
        inside = f"{prefix}{number[1]}."
        if not isinstance(scale, list | tuple):
            yield inside, _number(scale, inside)
            continue
        for layer, weight in enumerate(scale):
            for kind in ("attentions", "resnets"):
                yield f"{inside}{kind}.{layer}.", _number(weight, inside)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        raise _odd(f"{where}: {value!r}")
    return float(value)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _odd(found: str) -> UsageError:
    return UsageError(mismatch("adapter weights", _EXPECTED, found, "mend the call"))
