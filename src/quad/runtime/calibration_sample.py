"""A sample call of a task: a build measures ranges on it, and an admission learns from it where the base model is at hand."""

from __future__ import annotations

from dataclasses import dataclass

from quad.runtime.conditioning.picture import PictureSource


@dataclass(frozen=True, kw_only=True)
class CalibrationSample:
    """One call of the pipeline that the ranges must hold.

    Args:
        task: one of the base's tasks.
        image, mask: what the task reads; PIL, array or path.
        adapter: None for the task's own; a name, for an adapter that has no task.
        truth: the picture that should come out, where it is known; only the denoising loss of `quad build --lambda` reads it.
        steps: of the task's sampler, for a model whose calls cost much; never more than the task's own, which None takes.
    """

    task: str
    prompt: str
    image: PictureSource | None = None
    mask: PictureSource | None = None
    adapter: str | None = None
    truth: PictureSource | None = None
    steps: int | None = None
