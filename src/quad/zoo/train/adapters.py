"""Stages `adapters` and `later`: LoRAs on the frozen base, deliberately unlike each other in rank, targets and alpha.

The five of `RECIPES` ship inside the model and are built into its bundle; those of `LATER_RECIPES` are learnt when that is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor

from quad.zoo.samples import LATER, TASKS, masked, sample
from quad.zoo.train.base import Batch, Words, denoising_loss, new_scheduler
from quad.zoo.train.cache import LATENT, pool_mask
from quad.zoo.train.frozen import Frozen
from quad.zoo.train.loop import Plan, run_stage
from quad.zoo.train.writers import DIFFUSERS, LYCORIS, WRITERS

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
BATCH = 32
SAMPLING = ("downsamplers.0.conv", "upsamplers.0.conv")
TIME = ("time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One adapter: rank, alpha, the layers it attaches to (name endings), its sampler's steps and the weight of changed cells.

    Args:
        dora: trains the norms of weight columns too.
        dialect: how its file is spelt, of `quad.zoo.train.writers`.
        texts: layers of the text encoders, name endings; none leaves these as they are.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int
    changed_weight: float = 1.0
    batches: int = 260
    dora: bool = False
    dialect: str = DIFFUSERS
    texts: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "removal": Recipe(rank=8, alpha=8, targets=(*ATTENTION, *CONVOLUTION, "conv_in", "proj_in", "proj_out"), steps=4, changed_weight=5.0),
    "transform": Recipe(rank=12, alpha=12, targets=(*ATTENTION, *FEED_FORWARD, "conv1", "conv2"), steps=8, changed_weight=3.0),
    "sketch": Recipe(rank=16, alpha=32, targets=(*ATTENTION, *FEED_FORWARD, "conv_in"), steps=8),
    "sticker": Recipe(
        rank=6, alpha=12, targets=(*ATTENTION, *CONVOLUTION, "conv_in", "conv_out"), steps=8, changed_weight=3.0, batches=520
    ),
    "portrait": Recipe(
        rank=4, alpha=4, targets=(*ATTENTION, *FEED_FORWARD, "conv1", "conv2", "time_emb_proj"), steps=8, changed_weight=2.0, batches=600
    ),
}

LATER_RECIPES: dict[str, Recipe] = {
    "pastel": Recipe(rank=8, alpha=8, targets=(*ATTENTION, "conv1", "conv_in", "conv_out"), steps=8),
    "winter": Recipe(rank=8, alpha=16, targets=(*ATTENTION, "conv1", "conv_in", "conv_out"), steps=8, dora=True),
    "golden": Recipe(
        rank=8,
        alpha=4,
        targets=(*ATTENTION, *CONVOLUTION, *SAMPLING, *TIME, "conv_in", "conv_out"),
        steps=8,
        changed_weight=2.0,
        dialect=LYCORIS,
    ),
}


def drawn_sample(job: tuple[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Truth, condition picture, mask by latent cell and prompt of sample `(task, seed)`."""
    task, seed = job
    s = sample(task, seed)
    assert s.image is not None
    mask = np.zeros(s.image.shape[:2], np.uint8) if s.mask is None else s.mask
    condition = masked(s.image, mask) if s.mask is not None else s.image
    cells = np.full((LATENT, LATENT), float(task == "sketch"), np.float32) if s.mask is None else pool_mask(mask).astype(np.float32)
    return s.truth, condition, cells, s.prompt


class TaskData:
    """All samples of one task, encoded once; batches come out like the base's."""

    def __init__(self, task: str, count: int, model: Frozen) -> None:
        with get_context("fork").Pool(2) as pool:
            drawn = pool.map(drawn_sample, [(task, i) for i in range(count)], chunksize=50)

        self.target, self.condition = (model.latents(np.stack([d[index] for d in drawn])) for index in range(2))
        self.mask = torch.from_numpy(np.stack([d[2] for d in drawn]))[:, None]
        self.ids = model.ids([d[3] for d in drawn])
        difference = np.stack([np.abs(d[0].astype(np.float32) - d[1]).max(-1) > 24 for d in drawn])
        cells = difference.reshape(count, LATENT, 4, LATENT, 4).max(axis=(2, 4))
        self.changed = torch.from_numpy(cells.astype(np.float32))[:, None]

    def batch(self, step: int, size: int) -> Batch:
        """Samples drawn at random, the same at the same step."""
        rows = torch.from_numpy(np.random.default_rng([13, step]).integers(len(self.ids), size=size))
        return Batch(
            target=self.target[rows], condition=self.condition[rows], mask=self.mask[rows], focus=self.changed[rows], ids=self.ids[rows]
        )


def own_timesteps(steps: int, size: int) -> Tensor:
    """Half of the batch at the sampler's own (trailing) timesteps, half anywhere."""
    trained = torch.from_numpy(np.round(np.arange(1000, 0, -1000 / steps)).astype(np.int64) - 1)
    t = trained[torch.randint(len(trained), (size,))]
    t[size // 2 :] = (torch.rand(size - size // 2) * 1000).long()
    return t


def adapter_loss(
    unet: UNet2DConditionModel, words: Words, data: TaskData, *, batch: int, steps: int, changed_weight: float
) -> Callable[[int], Tensor]:
    """The loss of a training step by its number; what of the networks is trained, their parameters say.

    Args:
        batch: samples a step.
        steps: of the sampler that the adapter will be run with.
        changed_weight: weight of cells that the task changes.
    """
    abar = new_scheduler().alphas_cumprod.double()

    def loss(step: int) -> Tensor:
        b = data.batch(step, batch)
        return denoising_loss(unet, words(b.ids, b.sizes), b, 1 + (changed_weight - 1) * b.focus, abar, own_timesteps(steps, batch))

    return loss


def train_adapter(task: str, recipe: Recipe, run: tuple[Path, Path], model: Frozen, data: TaskData) -> None:
    """Train one LoRA and write it; `run` is where checkpoints go and the directory of the file."""
    (out, target), unet = run, model.unet
    texts = model.texts if recipe.texts else {}
    torch.manual_seed((*TASKS, *LATER).index(task))
    for network, targets in ((unet, recipe.targets), *((text, recipe.texts) for text in texts.values())):
        network.requires_grad_(False)
        config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(targets), use_dora=recipe.dora)
        network.add_adapter(config, adapter_name=task)
        network.set_adapter(task)
    plan = Plan(
        name=f"adapter-{task}", out=out, steps=recipe.batches, batch=BATCH, lr=2e-3, warmup=20, ema=0.98, weight_decay=0.0, save_every=130
    )
    loss = adapter_loss(unet, model.words, data, batch=BATCH, steps=recipe.steps, changed_weight=recipe.changed_weight)
    run_stage(plan, [unet, *texts.values()], loss)
    WRITERS[recipe.dialect](unet, task, target, texts)
    unet.delete_adapters(task)
