"""Stage `speed`: a LoRA that makes in 4 steps what the base makes in 16, alone and beside the adapters of the tasks.

    symbol            here                  meaning
    f(x_t, t)         `consistency`         c_skip x_t + c_out x_0, which is the same all along a run of the teacher
    d                 `pseudo_huber`        sqrt(e^2 + c^2) - c

The target of f is the end of the teacher's run that x_t is on: consistency distillation with the solver taken to its end, where no
average of the student has to stand in for it. The teacher has the guidance and the adapter of the task; the student has the adapter,
frozen, and learns the guidance.
Source: Luo et al. 2023 (latent consistency models), Eq. 9 and Algorithm 1; Luo et al. 2023b (LCM-LoRA); Song and Dhariwal 2023, Eq. 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import Tensor

from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerSettings
from quad.lora.report.stated_defaults import GUIDANCE_KEY, SAMPLER_KEY
from quad.runtime.request import TEXT_TO_IMAGE
from quad.runtime.samplers.lcm import boundary_scalings, lcm_timesteps
from quad.zoo.train.adapters import ATTENTION, CONVOLUTION, FEED_FORWARD, SAMPLING, TIME
from quad.zoo.train.loop import Plan, run_stage
from quad.zoo.train.trajectories import ABARS, TIMESTEPS, Conditions, Teacher, use_weights, x0_and_eps
from quad.zoo.train.writers import save_diffusers

TARGETS = (*ATTENTION, *FEED_FORWARD, *CONVOLUTION, *SAMPLING, *TIME, "conv_in", "conv_out", "proj_in", "proj_out")
RANK = 12
BATCH = 32
STEPS_OF_A_CHUNK = 200
SAMPLES_OF_A_CHUNK = {TEXT_TO_IMAGE: 192, "transform": 64, "sticker": 64, "portrait": 64, "sketch": 32, "removal": 32}
SHARES = {TEXT_TO_IMAGE: 0.46, "transform": 0.14, "sticker": 0.14, "portrait": 0.14, "sketch": 0.06, "removal": 0.06}
SAMPLER_STEPS = 4
HUBER = 0.03
MEANT = {SAMPLER_KEY: f"lcm:{SAMPLER_STEPS}", GUIDANCE_KEY: "1"}


def consistency(x: Tensor, v: Tensor, places: Tensor) -> Tensor:
    """f at places of the teacher's timesteps: `x` and `v` `(N, 4, 16, 16)`, `places` `(N,)`."""
    x0, _ = x0_and_eps(x, v, ABARS[places].view(-1, 1, 1, 1))
    pairs = torch.tensor([boundary_scalings(t, SamplerSettings().timestep_scaling) for t in TIMESTEPS])[places]
    c_skip, c_out = pairs.T.reshape(2, -1, 1, 1, 1)
    estimate: Tensor = c_skip * x + c_out * x0
    return estimate


def pseudo_huber(error: Tensor, c: float = HUBER) -> Tensor:
    """Quadratic near zero, linear far away."""
    return (error.square() + c * c).sqrt() - c


def draw_places(rng: np.random.Generator, size: int) -> Tensor:
    """Three of four at the sampler's own timesteps, the others at any of the teacher's."""
    own = [TIMESTEPS.index(t) for t in lcm_timesteps(NoiseSchedule(), SAMPLER_STEPS)]
    places = rng.choice(own, size=size)
    places[: size // 4] = rng.integers(len(TIMESTEPS), size=size // 4)
    return torch.from_numpy(places)


class Runs:
    """Batches of one task each, the same at the same step; the teacher makes another chunk whenever one is due."""

    def __init__(self, teacher: Teacher, shares: Mapping[str, float]) -> None:
        self.teacher, self.shares = teacher, shares
        self.chunks: dict[str, list[tuple[Conditions, Tensor]]] = {task: [] for task in shares}

    def batch(self, step: int, size: int) -> tuple[str, Conditions, Tensor, Tensor, Tensor]:
        """The task, its conditions, places `(N,)`, and states there and at the end `(N, 4, 16, 16)`."""
        rng = np.random.default_rng([17, step])
        task = str(rng.choice(list(self.shares), p=list(self.shares.values())))
        known, due = self.chunks[task], 1 + step // STEPS_OF_A_CHUNK
        known += [self.teacher.runs(task, chunk, SAMPLES_OF_A_CHUNK[task]) for chunk in range(len(known), due)]
        given, states = known[int(rng.integers(due))]
        rows = torch.from_numpy(rng.integers(len(states), size=size))
        places = draw_places(rng, size)
        return task, given.at(rows), places, states[rows, places].float(), states[rows, -1].float()


def add_speed(unet: UNet2DConditionModel) -> None:
    """Give a network the LoRA, untrained; all else is frozen."""
    unet.requires_grad_(False)
    torch.manual_seed(4)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), adapter_name="speed")
    unet.set_adapter("speed")


def train_speed(
    run: tuple[Path, Path], unet: UNet2DConditionModel, teacher: Teacher, steps: int, shares: Mapping[str, float] = MappingProxyType(SHARES)
) -> None:
    """Train the LoRA and write it in diffusers' format.

    Args:
        run: where checkpoints go, and the directory of the file.
        shares: task -> its part of the batches.
    """
    out, target = run
    unet.set_attn_processor(AttnProcessor())
    add_speed(unet)
    runs = Runs(teacher, shares)
    timesteps = torch.tensor(TIMESTEPS)

    def loss(step: int) -> Tensor:
        task, given, places, x, end = runs.batch(step, BATCH)
        use_weights(unet, teacher.weights[task])
        with torch.no_grad():
            hidden = teacher.model.words(given.ids, None)
        v = unet(given.channels(x), timesteps[places], hidden).sample.float()
        return pseudo_huber(consistency(x, v, places) - end).mean()

    plan = Plan(name="speed", out=out, steps=steps, batch=BATCH, lr=1e-3, warmup=20, ema=0.99, weight_decay=0.0, save_every=25)
    run_stage(plan, [unet], loss)
    save_diffusers(unet, "speed", target, meant=MEANT)
