"""Stage `judge`: the attribute classifier, trained on renders in about three minutes on one core.

Run `python -m quad.zoo.train.judge`; it writes `quad/zoo/weights/judge.safetensors`, fp16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from quad.core.storage.files import write_bytes
from quad.zoo import draw, world
from quad.zoo.judge import HEADS, SIZE, WEIGHTS, Judge, JudgeNet, split_heads, to_signal, truth_of, truth_of_sticker
from quad.zoo.train.loop import Plan, run_stage

IGNORE = -100
HELD_OUT = 10**9
TRAIN_PICTURES = 18_000


def example(seed: int, size: int = SIZE) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Render number `seed` and its attributes: half scenes, the rest portraits plain and styled, stickers, empty scenes."""
    rng = np.random.default_rng([91, seed])
    kind = rng.random()
    if kind < 0.30:
        face = world.sample_portrait(rng)
        style = str(rng.choice(world.STYLES)) if kind < 0.15 else None
        return draw.draw_portrait(face, style, size), truth_of(face, style)
    scene = world.sample_scene(rng, (0.5, 0.35, 0.15))
    if kind < 0.38:
        return draw.draw_sticker(scene.toys[0], size), truth_of_sticker(scene.toys[0])
    if kind < 0.44:
        scene = world.without(scene, 0)
    return draw.draw_scene(scene, size), truth_of(scene)


def labels(attributes: dict[str, str]) -> list[int]:
    """Class number by head; heads that do not apply are ignored by the loss."""
    return [words.index(attributes[name]) if name in attributes else IGNORE for name, words in HEADS.items()]


def render_set(first: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(count, 64, 64, 3)` and labels `(count, heads)`."""
    rows = [example(first + i) for i in range(count)]
    return np.stack([row[0] for row in rows]), np.array([labels(row[1]) for row in rows])


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures as decoders and samplers change them: a pixel's shift, slight blur, brightness, and noise."""
    dx, dy = rng.integers(-1, 2, size=2).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    blur = torch.from_numpy(rng.uniform(0, 0.7, (len(x), 1, 1, 1)) * (rng.random((len(x), 1, 1, 1)) < 0.6)).float()
    soft = avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + blur * (soft - x)
    gain = torch.from_numpy(1 + rng.normal(0, 0.04, (len(x), 3, 1, 1))).float()
    noise = torch.from_numpy(rng.uniform(0, 0.08, (len(x), 1, 1, 1))).float()
    return (x * gain + noise * torch.randn_like(x)).clamp(-1, 1)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of the heads' cross entropies, each over the pictures that it applies to."""
    total = logits.new_zeros((), dtype=torch.float32)
    for i, head in enumerate(split_heads(logits.float()).values()):
        total = total + cross_entropy(head, target[:, i], ignore_index=IGNORE, reduction="sum") / len(target)
    return total


def accuracy(judge: Judge, pictures: NDArray[np.uint8], target: NDArray[np.int64]) -> dict[str, float]:
    """Share of right answers per head, over the pictures that it applies to."""
    with torch.inference_mode():
        heads = split_heads(torch.cat([judge.net(x) for x in to_signal(pictures).split(256)]))
    predicted = np.stack([head.argmax(1).numpy() for head in heads.values()], axis=1)
    return {name: float((predicted[:, i] == target[:, i])[target[:, i] != IGNORE].mean()) for i, name in enumerate(HEADS)}


def train_judge(out: Path, steps: int = 2400, batch: int = 64, pictures: int = TRAIN_PICTURES) -> Judge:
    """Train from nothing; `out` holds the checkpoint that a killed run goes on from."""
    torch.manual_seed(11)
    net = JudgeNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, target = render_set(0, pictures)
    classes = torch.from_numpy(target)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([13, step])
        pick = rng.integers(len(train), size=batch)
        return loss_of(net(augment(to_signal(train[pick]), rng).contiguous(memory_format=torch.channels_last)), classes[pick])

    run_stage(Plan(name="judge", out=out, steps=steps, batch=batch, lr=2.5e-3, warmup=100, ema=0.995, save_every=500), [net], loss)
    return Judge(net)


def main(
    out: Annotated[Path, typer.Option(help="where the checkpoint lives")] = Path("out/train"),
    weights: Annotated[Path, typer.Option(help="the file to write")] = WEIGHTS,
    steps: Annotated[int, typer.Option(help="training steps")] = 2400,
) -> None:
    """Train the judge, write its weights, print its accuracy on held-out renders as one JSON object."""
    judge = train_judge(out, steps)
    write_bytes(weights, save({name: value.detach().half().contiguous() for name, value in judge.net.state_dict().items()}))
    print(json.dumps(accuracy(Judge.load(weights), *render_set(HELD_OUT, 2000))))


if __name__ == "__main__":
    typer.run(main)
