"""From what the user gives to what the graph reads beside the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import TaskSpec
from quad.core.picture_size import PictureSize
from quad.runtime.conditioning.mask import feather, grow_steps, pool_mask, read_mask, sample_mask
from quad.runtime.conditioning.picture import Fit, PictureSource, fit_centre, fit_whole, open_picture, to_rgb

HOLE = 127
DEFAULT_GROW_PX = 2


@dataclass(frozen=True)
class Pictures:
    """The pictures that the user gave beside the prompt; `mask_grow_px` counts pixels of the graph's picture."""

    image: PictureSource | None = None
    mask: PictureSource | None = None
    mask_grow_px: int = DEFAULT_GROW_PX


@dataclass(frozen=True)
class PasteBack:
    """The original picture uint8 `(H, W, 3)`, and the weight of the new one in it, float32 `(H, W, 1)`."""

    original: NDArray[np.uint8]
    weight: NDArray[np.float32]
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The condition channels of one call.

    Args:
        image: float32 `(1, 3, H, W)` in [-1, 1] for the VAE encoder; None means a zero latent.
        mask: float32 `(1, 1, h, w)` at latent resolution, 1 where the picture is made anew.
        paste: set where only the mask's inside is to change in the result.
        notes: what was done to the input, one line each.
        picture: the given picture itself, as `image`, where the loop begins at it or is held to it.
    """

    image: NDArray[np.float32] | None
    mask: NDArray[np.float32]
    paste: PasteBack | None = None
    notes: tuple[str, ...] = ()
    picture: NDArray[np.float32] | None = None


def make_condition(task: str, spec: TaskSpec, pictures: Pictures, size: PictureSize, factor: int) -> Condition:
    """The condition of a task.

    Args:
        size: of the graph's picture.
        factor: pixels per latent pixel.

    Raises:
        UsageError: the task needs a picture or a mask that was not given.
        InputError: a picture is no picture, or the mask is empty.
    """
    latent = (1, 1, size.height // factor, size.width // factor)
    ignored = _ignored(task, spec, pictures)
    if not spec.reads_picture:
        cut = np.zeros((1, 3, *size.grid), np.float32) if spec.condition == "cut-image" else None
        return Condition(image=cut, mask=_flat_mask(spec, latent), notes=ignored)
    if pictures.image is None:
        raise UsageError(mismatch(f"task {task}", "a picture", "none", "give one: --image, or image="))
    picture, notes = to_rgb(open_picture(pictures.image))
    notes = ignored + notes
    if spec.mask == "input":
        return _masked(task, spec, pictures, picture, notes, size, factor)
    fit = fit_centre(picture.shape[1], picture.shape[0], size)
    if not fit.is_identity:
        part = "" if fit.is_whole else "its centre square, " if size.is_square else "its centre, "
        notes += (f"image: {part}resized from {fit.width}x{fit.height} to {size}",)
    fitted = to_model(fit.forward(picture))
    everywhere = np.ones(size.grid, np.bool_)
    condition = Condition(image=_condition_image(spec, fitted, everywhere), mask=_flat_mask(spec, latent), notes=notes)
    return _with_picture(spec, fitted, condition)


def _masked(  # noqa: PLR0913 - as many facts as a masked picture has
    task: str, spec: TaskSpec, pictures: Pictures, picture: NDArray[np.uint8], notes: tuple[str, ...], size: PictureSize, factor: int
) -> Condition:
    """Work on the whole picture, padded to the graph's size, so that the result can be pasted back."""
    if pictures.mask is None:
        raise UsageError(mismatch(f"task {task}", "a mask of what to remove", "none", "give one: --mask, or mask_image="))
    height, width = picture.shape[:2]
    mask, mask_notes = read_mask(pictures.mask, width, height)
    fit = fit_whole(width, height, size)
    if not fit.is_identity:
        mask_notes += (f"image: worked on at {size}, pasted back into {width}x{height}",)
    steps = grow_steps(fit.forward_mask(mask), pictures.mask_grow_px)
    fitted = to_model(fit.forward(picture))
    # At the picture's own resolution the user's mask is wholly replaced, whatever resizing made of its edge.
    weight = fit.back(feather(steps)[..., None])
    np.clip(weight, 0, 1, out=weight)
    weight[mask] = 1
    small = pool_mask(steps[-1], factor) if spec.condition == "masked-image" else sample_mask(steps[-1], factor)
    image, paste = _condition_image(spec, fitted, steps[-1]), PasteBack(picture, weight, fit)
    return _with_picture(spec, fitted, Condition(image=image, mask=small, paste=paste, notes=notes + mask_notes))


def _condition_image(spec: TaskSpec, fitted: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """The part of the picture `(1, 3, H, W)` that the graph sees beside the latent."""
    match spec.condition:
        case "none":
            return None
        case "image":
            return fitted
        case "masked-image":
            return np.where(mask, to_model(np.full((1, 1, 1), HOLE, np.uint8)), fitted)
        case "cut-image":
            return np.where(mask, np.float32(0), fitted)


def _with_picture(spec: TaskSpec, fitted: NDArray[np.float32], condition: Condition) -> Condition:
    """With the picture itself, where the loop needs it."""
    needs = spec.strength is not msgspec.UNSET or bool(spec.blend)
    return replace(condition, picture=fitted) if needs else condition


def _flat_mask(spec: TaskSpec, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32) if spec.mask == "zeros" else np.ones(shape, np.float32)


def _ignored(task: str, spec: TaskSpec, pictures: Pictures) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if not spec.reads_picture and pictures.image is not None:
        notes += (f"image: task {task} reads no picture, it was not used; name a task that reads one",)
    if spec.mask != "input" and pictures.mask is not None:
        notes += (f"mask: task {task} reads no mask, it was not used; name a task that reads one",)
    return notes


def to_model(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 `(H, W, 3)` to float32 `(1, 3, H, W)` in [-1, 1]."""
    return np.ascontiguousarray((picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
