"""Runs of the frozen teacher with every state on the way: the speed LoRA learns from them.

    symbol     here                meaning
    x_t        `states[:, k]`      variance-preserving state before call k, and the clean end after the last
    w          `guidance`          classifier-free guidance of the teacher
    v          `v`                 the network's output, v-prediction

The teacher is DDIM on timesteps that 1, 2, 4 and 8 steps of latent consistency sampling visit too.
Source: Song et al. 2021, Eq. 12 with sigma 0 (DDIM); Luo et al. 2023, Eq. 14 (guidance in the solver).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from quad.core.manifest import NoiseSchedule
from quad.core.storage.files import new_file
from quad.runtime.request import TEXT_TO_IMAGE
from quad.runtime.samplers.lcm import lcm_timesteps
from quad.zoo.reference import ADAPTER_FILE
from quad.zoo.samples import TASKS, sample
from quad.zoo.train.adapters import drawn_sample
from quad.zoo.train.base import new_scheduler
from quad.zoo.train.cache import LATENT
from quad.zoo.train.frozen import Frozen

TEACHER_STEPS = 16
BATCH = 32
TIMESTEPS = tuple(lcm_timesteps(NoiseSchedule(), TEACHER_STEPS))
ABARS = torch.cat([new_scheduler().alphas_cumprod.double()[list(TIMESTEPS)], torch.ones(1, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Inputs of the network besides noise: condition `(N, 4, 16, 16)`, mask `(N, 1, 16, 16)`, token ids `(N, L)`."""

    condition: Tensor
    mask: Tensor
    ids: Tensor

    def channels(self, x: Tensor) -> Tensor:
        """The nine input channels at state `x`."""
        return torch.cat([x, self.condition, self.mask], dim=1)

    def at(self, rows: Tensor) -> Conditions:
        """Some of them."""
        return Conditions(condition=self.condition[rows], mask=self.mask[rows], ids=self.ids[rows])


def draw_conditions(task: str, seeds: range, model: Frozen) -> Conditions:
    """Conditions of a task's samples."""
    if task == TEXT_TO_IMAGE:
        shape = (len(seeds), 1, LATENT, LATENT)
        prompts = [sample(task, seed).prompt for seed in seeds]
        return Conditions(condition=torch.zeros(shape).repeat(1, 4, 1, 1), mask=torch.ones(shape), ids=model.ids(prompts))
    drawn = [drawn_sample((task, seed)) for seed in seeds]
    return Conditions(
        condition=model.latents(np.stack([d[1] for d in drawn])),
        mask=torch.from_numpy(np.stack([d[2] for d in drawn]))[:, None],
        ids=model.ids([d[3] for d in drawn]),
    )


def x0_and_eps(x: Tensor, v: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise that an output means; `abar` broadcasts against `x`."""
    signal, noise = abar.sqrt().float(), (1 - abar).sqrt().float()
    return signal * x - noise * v, signal * v + noise * x


@torch.no_grad()
def run_teacher(model: Frozen, given: Conditions, guidance: float, x: Tensor) -> Tensor:
    """All states of one run, `(N, steps + 1, 4, 16, 16)`."""
    unet, hidden = model.unet, model.words(given.ids, None)
    empty = model.words(model.ids([""]), None).expand_as(hidden)
    states = [x]
    for k, t in enumerate(TIMESTEPS):
        channels = given.channels(x)
        v = unet(channels, t, hidden).sample.float()
        if guidance != 1.0:
            plain = unet(channels, t, empty).sample.float()
            v = plain + guidance * (v - plain)
        x0, eps = x0_and_eps(x, v, ABARS[k])
        x = ABARS[k + 1].sqrt().float() * x0 + (1 - ABARS[k + 1]).sqrt().float() * eps
        states.append(x)
    return torch.stack(states, dim=1)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The frozen model with any of its tasks' adapters merged in.

    Args:
        weights: task -> the U-Net's weights for it, by name.
        guidance: task -> scale; 1 where none is said.
        out: where runs are kept.
    """

    model: Frozen
    weights: dict[str, dict[str, Tensor]]
    guidance: dict[str, float]
    out: Path

    def runs(self, task: str, chunk: int, count: int) -> tuple[Conditions, Tensor]:
        """Run number `chunk` of a task, of `count` samples: from its file where there is one."""
        file = self.out / f"speed_{task}_{chunk}_{count}.npz"
        if not file.exists():
            given = draw_conditions(task, range(chunk * count, (chunk + 1) * count), self.model)
            noise = torch.randn(count, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(1000 * chunk + TASKS.index(task)))
            use_weights(self.model.unet, self.weights[task])
            with torch.autocast("cpu", torch.bfloat16):
                parts = [
                    run_teacher(self.model, given.at(rows), self.guidance.get(task, 1.0), noise[rows])
                    for rows in torch.arange(count).split(BATCH)
                ]
            with new_file(file) as stream:
                condition, mask, states = (value.half().numpy() for value in (given.condition, given.mask, torch.cat(parts)))
                np.savez(stream, condition=condition, mask=mask, ids=given.ids.numpy(), states=states)
        with np.load(file, allow_pickle=False) as data:
            kept = {name: torch.from_numpy(data[name]) for name in data.files}
        return Conditions(condition=kept["condition"].float(), mask=kept["mask"].float(), ids=kept["ids"]), kept["states"]


def use_weights(unet: UNet2DConditionModel, weights: dict[str, Tensor]) -> None:
    """Let the frozen layers of a network, with LoRA layers around them or without, hold these weights; nothing is copied."""
    for name, parameter in unet.named_parameters():
        if (plain := name.replace(".base_layer", "")) in weights:
            parameter.data = weights[plain]


def merged_weights(kind: type[UNet2DConditionModel], model: Path, adapter: str | None) -> dict[str, torch.Tensor]:
    """The U-Net's weights by name, with a shipped adapter merged in; `kind` is its class."""
    unet = kind.from_pretrained(model / "unet", torch_dtype=torch.float32)
    if adapter is not None:
        unet.load_lora_adapter(str(model / "adapters" / adapter), weight_name=ADAPTER_FILE, prefix="unet")
        unet.fuse_lora()
        unet.unload_lora()
    return dict(unet.named_parameters())
