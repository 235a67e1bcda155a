"""One training or test sample of each task: input picture, mask, prompt and exact truth.

Every function is deterministic in its generator. Pictures are uint8 `(H, W, 3)`, masks uint8 `(H, W)` with 255 inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quad.zoo import draw, world
from quad.zoo.world import Portrait, Scene

TASKS = ("text-to-image", "transform", "removal", "sketch", "sticker", "portrait")
LATER = ("pastel",)  # learnt after the model was frozen: no task of the shipped bundle, what `quad adapt` is shown with
HOLE = 127


@dataclass(frozen=True)
class Sample:
    """What a task is given and what it should give.

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
    if rng.random() < portraits:
        face = world.sample_portrait(rng)
        return Sample("text-to-image", face.caption, draw.draw_portrait(face, size=size), after=face)
    scene = world.sample_scene(rng)
    return Sample("text-to-image", scene.caption, draw.draw_scene(scene, size), after=scene)


def transform(rng: np.random.Generator, size: int = 64) -> Sample:
    scene = world.sample_scene(rng)
    instruction, after = world.sample_edit(scene, rng)
    return Sample("transform", instruction, draw.draw_scene(after, size), draw.draw_scene(scene, size), None, scene, after)


def removal(rng: np.random.Generator, size: int = 64) -> Sample:
    scene = world.sample_scene(rng, (0.55, 0.37, 0.08))
    index = int(rng.integers(len(scene.things)))
    thing, after = scene.things[index], world.without(scene, index)
    mask = draw.draw_mask(thing, size)
    return Sample("removal", world.removal_prompt(thing), draw.draw_scene(after, size), draw.draw_scene(scene, size), mask, scene, after)


def sketch(rng: np.random.Generator, size: int = 64) -> Sample:
    scene = world.sample_scene(rng)
    return Sample("sketch", scene.caption, draw.draw_scene(scene, size), draw.draw_lines(scene, size), None, scene, scene)


def sticker(rng: np.random.Generator, size: int = 64) -> Sample:
    scene = world.sample_scene(rng, (0.7, 0.3))
    names = [(thing.kind, thing.colour) for thing in scene.things]
    if len(set(names)) < len(names):
        scene = world.without(scene, 0)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    truth, image = draw.draw_sticker(thing, size), draw.draw_scene(scene, size)
    return Sample("sticker", world.sticker_prompt(thing), truth, image, None, scene, scene, str(index))


def portrait(rng: np.random.Generator, size: int = 64) -> Sample:
    face = world.sample_portrait(rng)
    style = str(rng.choice(world.STYLES))
    truth, image = draw.draw_portrait(face, style, size), draw.draw_portrait(face, size=size)
    return Sample("portrait", world.style_prompt(style), truth, image, None, face, face, style)


def pastel(rng: np.random.Generator, size: int = 64) -> Sample:
    scene = world.sample_scene(rng)
    return Sample("pastel", world.PASTEL_PROMPT, draw.draw_pastel(scene, size), draw.draw_scene(scene, size), None, scene, scene)


SAMPLERS: dict[str, Callable[..., Sample]] = {
    "text-to-image": text_to_image,
    "transform": transform,
    "removal": removal,
    "sketch": sketch,
    "sticker": sticker,
    "portrait": portrait,
    "pastel": pastel,
}


def sample(task: str, seed: int, size: int = 64) -> Sample:
    """Sample number `seed` of a task; training uses seeds below 10**9, held-out sets those above."""
    return SAMPLERS[task](np.random.default_rng([(*TASKS, *LATER).index(task), seed]), size)


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with the hole painted grey, so that nothing of the object leaks into the condition."""
    return np.where(mask[..., None] > 0, np.uint8(HOLE), image)
