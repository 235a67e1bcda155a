"""The autoencoder of `toyland-xl`: its latents are those of `toyland` for the picture at half its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss

from quad.zoo.train import vae
from quad.zoo.train.loop import Plan, run_stage
from quad.zoo.train.xl.networks import SIZE

BATCH = 8
TIE = 10.0
NOISE = 0.03


def signal(seeds: range) -> Tensor:
    """Pictures of the mixture, `(N, 3, 128, 128)` in [-1, 1]."""
    return vae.to_signal(np.stack([vae.picture(seed, SIZE) for seed in seeds])).contiguous(memory_format=torch.channels_last)


def _checker(model: AutoencoderTiny, toyland: AutoencoderTiny, held_out: Tensor) -> Callable[[], dict[str, float]]:
    def check() -> dict[str, float]:
        with torch.no_grad():
            z = model.encoder(held_out)
            y, given = model.decoder(z).clamp(-1, 1), toyland.encoder(avg_pool2d(held_out, 2))
        mse = ((y - held_out) / 2).square().flatten(1).mean(1)
        return {"psnr": float((-10 * mse.log10()).mean()), "tie": float((z - given).square().mean() / given.var())}

    return check


def train_vae(out: Path, model: AutoencoderTiny, toyland: AutoencoderTiny, steps: int, lr: float = 1.5e-3) -> None:
    """Train in place: pictures come back, latents stay `toyland`'s."""
    toyland.requires_grad_(False)
    model.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = signal(range(step * BATCH, (step + 1) * BATCH))
        with torch.no_grad():
            given = toyland.encoder(avg_pool2d(x, 2)).float()
        z = model.encoder(x)
        y = model.decoder(z + NOISE * torch.randn_like(z)).float()
        return vae.picture_loss(y, x) + TIE * mse_loss(z.float(), given)

    plan = Plan(name="vae", out=out, steps=steps, batch=BATCH, lr=lr, warmup=60, ema=0.99, save_every=50)
    run_stage(plan, [model], loss, _checker(model, toyland, signal(range(10**9, 10**9 + 24))))
