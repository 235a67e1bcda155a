"""Stage `vae`: a tiny autoencoder, f = 4, four latent channels, on every kind of picture that Toyland has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from quad.zoo import draw, world
from quad.zoo.samples import masked
from quad.zoo.train.loop import Plan, run_stage


def new_vae() -> AutoencoderTiny:
    """The untrained autoencoder, 0.26 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(3, 2, 0),
        latent_channels=4,
    )


def picture(seed: int, size: int = 64) -> np.ndarray:
    """Picture number `seed` of the mixture: half scenes, a fifth plain portraits, the rest lines, stickers, styles, holes."""
    rng = np.random.default_rng([77, seed])
    kind = rng.random()
    if kind < 0.20:
        return draw.draw_portrait(world.sample_portrait(rng), size=size)
    if kind < 0.30:
        return draw.draw_portrait(world.sample_portrait(rng), str(rng.choice(world.STYLES)), size)
    scene = world.sample_scene(rng, (0.4, 0.4, 0.2))
    if kind < 0.40:
        return draw.draw_lines(scene, size)
    if kind < 0.50:
        return draw.draw_sticker(scene.toys[0], size)
    image = draw.draw_scene(scene, size)
    if kind < 0.60:
        return masked(image, draw.draw_mask(scene.toys[0], size))
    return image


def to_signal(pictures: np.ndarray) -> Tensor:
    """uint8 `(N, H, W, 3)` to float `(N, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the pictures' horizontal and vertical differences."""
    d = a - b
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., :, 1:] - d[..., :, :-1]).abs().mean()


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + L1 of gradients + 0.3 MSE."""
    total: Tensor = l1_loss(y, x) + gradient_loss(y, x) + 0.3 * mse_loss(y, x)
    return total


def vae_loss(vae: AutoencoderTiny, x: Tensor, noise: float = 0.03) -> Tensor:
    """Picture loss + a weak pull of the latents to zero; a little latent noise makes the decoder robust."""
    z = vae.encoder(x)
    y = vae.decoder(z + noise * torch.randn_like(z)).float()
    total: Tensor = picture_loss(y, x) + 1e-3 * z.float().square().mean()
    return total


def _checker(vae: AutoencoderTiny, held_out: np.ndarray) -> Callable[[], dict[str, float]]:
    signal = to_signal(held_out)

    def check() -> dict[str, float]:
        with torch.no_grad():
            y = torch.cat([vae.decoder(vae.encoder(part)) for part in signal.split(64)]).float().clamp(-1, 1)
        mse = ((y - signal) / 2).square().flatten(1).mean(1)
        return {"psnr": float((-10 * mse.log10()).mean())}

    return check


def train_vae(out: Path, samples: int, pictures: np.ndarray, held_out: np.ndarray, lr: float = 2e-3, batch: int = 16) -> AutoencoderTiny:
    """Train a new autoencoder on uint8 pictures `(N, 64, 64, 3)`."""
    vae = new_vae().to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([5, step])
        x = to_signal(pictures[rng.integers(len(pictures), size=batch)]).contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, x)

    run_stage(Plan(name="vae", out=out, steps=samples // batch, batch=batch, lr=lr, warmup=100), [vae], loss, _checker(vae, held_out))
    return vae
