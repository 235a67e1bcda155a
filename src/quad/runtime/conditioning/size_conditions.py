"""Sizes that some models are told beside the prompt, by diffusers' names: of the original picture, of its crop and of the target.

Source: Podell et al. 2023 (SDXL), section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import TextSpec
from quad.core.picture_size import PictureSize
from quad.runtime.conditioning.text_features import in_rows
from quad.runtime.not_here import refuse_arguments

Float = NDArray[np.float32]
Pair = tuple[int, int]
LARGEST = 2**16


@dataclass(frozen=True, kw_only=True)
class SizeConditions:
    """The sizes that a model is told, rows first; None for what diffusers' pipelines say where nobody does.

    Args:
        original_size, target_size: height and width in pixels; None for the picture's own.
        crops_coords_top_left: pixels cut off above and to the left; None for none.
        negative_original_size, negative_crops_coords_top_left, negative_target_size: of the side without the prompt; None for the same.
    """

    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None

    def checked(self) -> SizeConditions:
        """The same, of Python's numbers.

        Raises:
            UsageError: one is no two whole numbers from 0 on.
        """
        stated = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: _pair(name, value) for name, value in stated.items() if value is not None})

    @property
    def is_default(self) -> bool:
        """Nobody said anything."""
        return self == SizeConditions()

    def numbers(self, size: PictureSize, negative: bool = False) -> tuple[int, ...]:
        """The six numbers: original size, crop, target size.

        Args:
            size: of the picture.
            negative: of the side without the prompt.
        """
        own = (self.original_size or size.grid, self.crops_coords_top_left or (0, 0), self.target_size or size.grid)
        others = (self.negative_original_size, self.negative_crops_coords_top_left, self.negative_target_size) if negative else own
        return tuple(number for other, pair in zip(others, own, strict=True) for number in (pair if other is None else other))


DEFAULT_SIZES = SizeConditions()
SIZE_NAMES = tuple(field.name for field in fields(SizeConditions))


def stated_sizes(arguments: Mapping[str, Any]) -> SizeConditions:
    """The sizes among the arguments of a call.

    Raises:
        UsageError: there are other arguments.
    """
    refuse_arguments({name: value for name, value in arguments.items() if name not in SIZE_NAMES})
    return SizeConditions(**arguments)


def _pair(name: str, value: Any) -> Pair:
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
    if len(pair) != 2 or not all(isinstance(number, int | np.integer) and 0 <= number <= LARGEST for number in pair):
        raise UsageError(mismatch(name, f"two whole numbers from 0 to {LARGEST}, rows first", repr(value), "give two"))
    return int(pair[0]), int(pair[1])


def require_size_conditions(text: TextSpec, sizes: SizeConditions) -> None:
    """Refuse sizes other than the default for a model without size conditions.

    Raises:
        UsageError: names the arguments.
    """
    if text.sizes is msgspec.UNSET and not sizes.is_default:
        names = "original_size, crops_coords_top_left, target_size"
        raise UsageError(mismatch(names, "a model that is told sizes", "one that is not", "leave them out"))


def with_sizes(text: TextSpec, features: Float, numbers: Sequence[int]) -> Float:
    """Features of a prompt `(1, rows, D)` and, where the model is told sizes, the rows of their embedding behind them.

    Args:
        numbers: six, of `SizeConditions.numbers`.
    """
    if text.sizes is msgspec.UNSET:
        return features
    waves = text.sizes(np.asarray(numbers, np.float32)).reshape(1, -1)
    return np.concatenate([features, in_rows(waves, text.hidden)], axis=1)
