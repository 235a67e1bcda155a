"""Everything the base learns from, rendered and encoded once: latents, masks, focus maps and prompts in one npz per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from rich.progress import track

from quad.core.storage.files import new_file
from quad.zoo import draw, world
from quad.zoo.samples import masked
from quad.zoo.train.vae import to_signal

LATENT = 16
Drawn = tuple[list[np.ndarray], list[np.ndarray], str]


def pool_mask(mask: np.ndarray) -> np.ndarray:
    """uint8 `(H, W)` to uint8 `(16, 16)`, 1 where any pixel of the cell is set."""
    f = mask.shape[0] // LATENT
    cells: np.ndarray = (mask.reshape(LATENT, f, LATENT, f).max(axis=(1, 3)) > 0).astype(np.uint8)
    return cells


def focus_of(scene: world.Scene) -> np.ndarray:
    """Cells that hold an object: they weigh more in the loss."""
    parts = [pool_mask(draw.draw_mask(toy, grow=0.0)) for toy in scene.toys]
    return np.maximum.reduce(parts) if parts else np.zeros((LATENT, LATENT), np.uint8)


_FACE_FOCUS = np.zeros((LATENT, LATENT), np.uint8)
_FACE_FOCUS[5:14, 4:12] = 1


def draw_plain(seed: int) -> Drawn:
    """A scene from its caption."""
    rng = np.random.default_rng([101, seed])
    scene = world.sample_scene(rng)
    return [draw.draw_scene(scene)], [focus_of(scene)], scene.caption


def draw_face(seed: int) -> Drawn:
    """A portrait from its caption."""
    rng = np.random.default_rng([102, seed])
    face = world.sample_portrait(rng)
    return [draw.draw_portrait(face)], [_FACE_FOCUS], face.caption


def draw_edit(seed: int) -> Drawn:
    """A scene after an instruction, and before it."""
    rng = np.random.default_rng([103, seed])
    scene = world.sample_scene(rng)
    instruction, after = world.sample_edit(scene, rng)
    return [draw.draw_scene(after), draw.draw_scene(scene)], [focus_of(after)], instruction


def draw_line(seed: int) -> Drawn:
    """A scene, and its line drawing."""
    rng = np.random.default_rng([104, seed])
    scene = world.sample_scene(rng)
    return [draw.draw_scene(scene), draw.draw_lines(scene)], [focus_of(scene)], scene.caption


def draw_inpaint(seed: int) -> Drawn:
    """A scene with a random box or an object's silhouette hidden; half the time the object is to vanish."""
    rng = np.random.default_rng([105, seed])
    scene = world.sample_scene(rng, (0.5, 0.4, 0.1))
    index = int(rng.integers(len(scene.toys)))
    if rng.random() < 0.5:
        mask = draw.draw_mask(scene.toys[index])
        after, prompt = world.without(scene, index), world.removal_prompt(scene.toys[index])
    else:
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 16, 16), (40, 40, 40, 40)))
        mask = np.zeros((64, 64), np.uint8)
        mask[y : y + h, x : x + w] = 255
        after, prompt = scene, scene.caption
    return [draw.draw_scene(after), masked(draw.draw_scene(scene), mask)], [focus_of(after), pool_mask(mask)], prompt


KINDS: dict[str, Callable[[int], Drawn]] = {
    "plain": draw_plain,
    "face": draw_face,
    "edit": draw_edit,
    "line": draw_line,
    "inpaint": draw_inpaint,
}


@torch.no_grad()
def encode_pictures(vae: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    """uint8 `(N, 64, 64, 3)` to raw latents float16 `(N, 4, 16, 16)`."""
    out = [vae.encoder(to_signal(pictures[i : i + 250])).half().numpy() for i in range(0, len(pictures), 250)]
    return np.concatenate(out)


def build(
    out: Path, vae: AutoencoderTiny, kind: str, count: int, processes: int = 2, kinds: Mapping[str, Callable[[int], Drawn]] = KINDS
) -> dict[str, np.ndarray]:
    """Render and encode `count` samples of a kind, or load them when they are there."""
    file = out / f"cache_{kind}_{count}.npz"
    if not file.exists():
        latents, masks, prompts = [], [], []
        with get_context("fork").Pool(processes) as pool:
            for start in track(range(0, count, 1000), description=f"cache {kind}"):
                drawn = pool.map(kinds[kind], range(start, min(count, start + 1000)), chunksize=50)
                pictures = np.stack([p for d in drawn for p in d[0]])
                latents.append(encode_pictures(vae, pictures).reshape(len(drawn), -1, 4, LATENT, LATENT))
                masks.append(np.stack([np.stack(d[1]) for d in drawn]))
                prompts += [d[2] for d in drawn]
        with new_file(file) as stream:
            np.savez(stream, latents=np.concatenate(latents), masks=np.concatenate(masks), prompts=np.array(prompts))
    with np.load(file, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}
