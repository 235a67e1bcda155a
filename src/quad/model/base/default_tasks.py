"""The tasks of a model that brings none of its own: what diffusers' pipelines of its kind do. Defaults are theirs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from quad.core.errors import QuadError
from quad.core.families import Family
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.model.base.checkpoint.layout import LATENT_CHANNELS, open_checkpoint
from quad.model.base.family import Inputs, denoiser_inputs, family_of
from quad.model.base.weight_files import read_config
from quad.runtime.adapter_defaults import DISTILLED_GUIDANCE
from quad.runtime.request import TASKS, TEXT_TO_IMAGE
from quad.runtime.samplers.names import DISTILLED

INPAINT = "inpainting"
IMAGE_GUIDANCE = 1.5
# How much of a given picture is made anew: diffusers' own for a new version of it; lines leave more open; a portrait stays who it is.
STRENGTH, SKETCH_STRENGTH, PORTRAIT_STRENGTH = 0.8, 0.9, 0.6
# These exist only with an adapter of their name: what a plain model makes of them is one of the other tasks.
ADAPTER_TASKS = ("sticker", "portrait")


def plain_tasks(family: Family, beside: Inputs, sampler: SamplerSpec, adapters: Collection[str] = ()) -> dict[str, TaskSpec]:
    """Task -> how it runs; an adapter named like a task is that task's.

    Args:
        beside: what the denoiser reads beside the latent; unset for nothing.
        adapters: names of those that are built in.
    """
    condition = next(layout.condition for layout in family.denoiser.layouts if layout.beside == (beside or ()))
    ways = _editing() if condition == "image" else _drawing(condition, sampler.steps)
    scale = DISTILLED_GUIDANCE if sampler.kind in DISTILLED else family.guidance
    return {
        task: TaskSpec(adapter=task if task in adapters else None, sampler=sampler, guidance=scale, **ways[task])
        for task in (*TASKS, INPAINT)
        if task in ways and (task not in ADAPTER_TASKS or task in adapters)
    }


def tasks_of(model: Path, adapters: Collection[str]) -> dict[str, str | None]:
    """Task -> its adapter of a model without tasks of its own, by its configs or its header; none where `open_model` will refuse it."""
    try:
        if model.is_file():
            checkpoint = open_checkpoint(model)
            family, latent_channels = checkpoint.family, LATENT_CHANNELS
            config: dict[str, Any] = {"in_channels": checkpoint.channels, "out_channels": LATENT_CHANNELS}
        else:
            family = family_of(model)
            config = read_config(model / family.denoiser.folder / "config.json")
            latent_channels = min(int(config["in_channels"]), int(config["out_channels"]))
        beside = denoiser_inputs(family, model / family.denoiser.folder, config, latent_channels)
    except (QuadError, KeyError, TypeError, ValueError, OverflowError):
        return {}
    return {task: spec.adapter for task, spec in plain_tasks(family, beside, SamplerSpec(kind="ddim", steps=1), adapters).items()}


def _drawing(condition: str, steps: int) -> dict[str, dict[str, Any]]:
    """A picture from noise, or from a given one noised; where the U-Net sees no mask, the rest of the picture is blended in.

    Args:
        steps: of the sampler; where it has one alone, that is taken, from a picture that is all noise.
    """
    anew = {"condition": condition, "mask": "ones"}
    transform, sketch, portrait = ({**anew, "strength": max(s, 1 / steps)} for s in (STRENGTH, SKETCH_STRENGTH, PORTRAIT_STRENGTH))
    inside = {"condition": condition, "mask": "input", **({"blend": True} if condition == "none" else {})}
    return {
        TEXT_TO_IMAGE: anew,
        "transform": transform,
        "removal": inside,
        "sketch": sketch,
        "sticker": anew,
        "portrait": portrait,
        INPAINT: inside,
    }


def _editing() -> dict[str, dict[str, Any]]:
    """The given picture after an instruction; it has to be given."""
    edit = {"condition": "image", "mask": "ones", "image_guidance": IMAGE_GUIDANCE}
    inside = {**edit, "mask": "input"}
    return {"transform": edit, "removal": inside, "sketch": edit, "sticker": edit, "portrait": edit, INPAINT: inside}
