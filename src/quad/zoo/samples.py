"""One training or test sample of each task: input picture, mask, prompt and exact truth.

Every function is deterministic in its generator. Pictures are uint8 `(H, W, 3)`, masks uint8 `(H, W)` with 255 inside.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace

import numpy as np

from quad.zoo import draw, world
from quad.zoo.world import Portrait, Scene

TASKS = ("text-to-image", "transform", "removal", "sketch", "sticker", "portrait")
LATER = ("pastel", "winter", "golden")  # learnt after the model was frozen: no task of the shipped bundle, what `quad adapt` is shown with
FEW_STEPS = "few-steps"  # text-to-image of a model with a speed LoRA of its own
HOLE = 127


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The input of a task and the truth of its output.

    `image` is None for text-to-image; `mask` marks what is to be made anew (None: see `quad.runtime.request`);
    `before` and `after` describe the input and the truth.
    """

    task: str
    prompt: str
    truth: np.ndarray
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    before: Scene | Portrait | None = None
    after: Scene | Portrait | None = None
    detail: str = ""


def text_to_image(rng: np.random.Generator, size: int = 64, portraits: float = 0.3) -> Sample:
    """A caption and its scene, or its portrait in the share `portraits` of samples."""
    if rng.random() < portraits:
        face = world.sample_portrait(rng)
        return Sample(task="text-to-image", prompt=face.caption, truth=draw.draw_portrait(face, size=size), after=face)
    scene = world.sample_scene(rng)
    return Sample(task="text-to-image", prompt=scene.caption, truth=draw.draw_scene(scene, size), after=scene)


def transform(rng: np.random.Generator, size: int = 64) -> Sample:
    """A scene and an instruction that changes one attribute of it."""
    scene = world.sample_scene(rng)
    instruction, after = world.sample_edit(scene, rng)
    return Sample(
        task="transform",
        prompt=instruction,
        truth=draw.draw_scene(after, size),
        image=draw.draw_scene(scene, size),
        mask=None,
        before=scene,
        after=after,
    )


def removal(rng: np.random.Generator, size: int = 64) -> Sample:
    """A scene, the mask of one toy in it, and the scene without that toy."""
    scene = world.sample_scene(rng, (0.55, 0.37, 0.08))
    index = int(rng.integers(len(scene.toys)))
    toy, after = scene.toys[index], world.without(scene, index)
    mask = draw.draw_mask(toy, size)
    return Sample(
        task="removal",
        prompt=world.removal_prompt(toy),
        truth=draw.draw_scene(after, size),
        image=draw.draw_scene(scene, size),
        mask=mask,
        before=scene,
        after=after,
    )


def sketch(rng: np.random.Generator, size: int = 64) -> Sample:
    """A line drawing and the scene it was drawn of."""
    scene = world.sample_scene(rng)
    return Sample(
        task="sketch",
        prompt=scene.caption,
        truth=draw.draw_scene(scene, size),
        image=draw.draw_lines(scene, size),
        mask=None,
        before=scene,
        after=scene,
    )


def sticker(rng: np.random.Generator, size: int = 64) -> Sample:
    """A scene, and one of its toys as a sticker; `detail` is that toy's index."""
    scene = world.sample_scene(rng, (0.7, 0.3))
    names = [(toy.kind, toy.colour) for toy in scene.toys]
    if len(set(names)) < len(names):
        scene = world.without(scene, 0)
    index = int(rng.integers(len(scene.toys)))
    toy = scene.toys[index]
    truth, image = draw.draw_sticker(toy, size), draw.draw_scene(scene, size)
    return Sample(
        task="sticker", prompt=world.sticker_prompt(toy), truth=truth, image=image, mask=None, before=scene, after=scene, detail=str(index)
    )


def portrait(rng: np.random.Generator, size: int = 64) -> Sample:
    """A plain portrait and the same face in a style; `detail` is the style."""
    face = world.sample_portrait(rng)
    style = str(rng.choice(world.STYLES))
    truth, image = draw.draw_portrait(face, style, size), draw.draw_portrait(face, size=size)
    return Sample(
        task="portrait", prompt=world.style_prompt(style), truth=truth, image=image, mask=None, before=face, after=face, detail=style
    )


def pastel(rng: np.random.Generator, size: int = 64) -> Sample:
    """A scene and the same scene in pale colours."""
    scene = world.sample_scene(rng)
    return Sample(
        task="pastel",
        prompt=world.PASTEL_PROMPT,
        truth=draw.draw_pastel(scene, size),
        image=draw.draw_scene(scene, size),
        mask=None,
        before=scene,
        after=scene,
    )


def _restyled(task: str, prompt: str, change: Callable[[Scene], Scene]) -> Callable[..., Sample]:
    """The maker of a scene and what becomes of it, whatever it was."""

    def make(rng: np.random.Generator, size: int = 64) -> Sample:
        scene = world.sample_scene(rng)
        after = change(scene)
        truth, image = draw.draw_scene(after, size), draw.draw_scene(scene, size)
        return Sample(task=task, prompt=prompt, truth=truth, image=image, before=scene, after=after)

    return make


SAMPLERS: dict[str, Callable[..., Sample]] = {
    "text-to-image": text_to_image,
    "transform": transform,
    "removal": removal,
    "sketch": sketch,
    "sticker": sticker,
    "portrait": portrait,
    "pastel": pastel,
    "winter": _restyled("winter", world.WINTER_PROMPT, world.winter),
    "golden": _restyled("golden", world.GOLDEN_PROMPT, world.golden),
    FEW_STEPS: lambda rng, size=64: replace(text_to_image(rng, size), task=FEW_STEPS),
}


def with_samples(tasks: Container[str]) -> list[str]:
    """Those of a model's tasks that it is measured on, in the order of the tables."""
    return [task for task in (*TASKS, FEW_STEPS) if task in tasks]


def sample(task: str, seed: int, size: int = 64) -> Sample:
    """Sample number `seed` of a task; training uses seeds below 10**9, held-out sets those above."""
    return SAMPLERS[task](np.random.default_rng([(*TASKS, *LATER, FEW_STEPS).index(task), seed]), size)


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with the hole painted grey, so that nothing of the object leaks into the condition."""
    return np.where(mask[..., None] > 0, np.uint8(HOLE), image)
