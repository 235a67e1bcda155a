"""A tiny decoder learns to answer as the model's own, on latents that the model makes and encodes.

    L = mean |D_tiny(z) - clamp(D(z), -1, 1)|

over crops z of latents of finished pictures and of encoded ones, each also mirrored, and with noise beside it, so that latents on their way
(previews) are among them. Nothing of the model's own training is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from quad.model.device import device_of
from quad.model.tiny_decoder import LARGEST_SHARE, LEAST_WIDTH, WIDTH, TinyDecoder, multiplications

Progress = Callable[[int, int], None]  # steps done, of how many

STEPS, WARM_UP = 2000, 50
RATE = 0.16  # over the width
CROP = 32  # latent pixels each way, at most
PIXELS, MOST_CROPS = 1024, 8  # latent pixels of a step, and crops
SEED = 40_000
_NOISE = ((1.0, 0.2), (0.8, 0.5))  # share of the latent, and of unit normal noise, that are added up


def width_for(decoder: nn.Module, latent: Tensor, factor: int) -> int:
    """Of the widest tiny decoder, 64 channels at most, that multiplies no more than a quarter as often as the own one; 8 where none does.

    Args:
        latent: any one `(1, C, h, w)`.
        factor: picture pixels by latent pixel, a power of two.
    """
    own, width = multiplications(decoder, latent), WIDTH
    while width > LEAST_WIDTH and multiplications(_blank(latent, factor, width), latent) > LARGEST_SHARE * own:
        width //= 2
    return width


def distil_tiny_decoder(
    decoder: nn.Module, latents: Tensor, factor: int, steps: int = STEPS, progress: Progress = lambda *_: None
) -> dict[str, Tensor]:
    """Train one from its first step.

    Args:
        decoder: the own one; it is asked once for each latent and its variants.
        latents: `(n, C, h, w)` in model space, of one size.
        factor: picture pixels by latent pixel, a power of two.

    Returns:
        Weights by name, on the CPU, for `tiny_decoder_of`.
    """
    device, rng = device_of(decoder), torch.Generator().manual_seed(SEED)
    inputs = _variants(latents, rng).to(device)
    with torch.no_grad():
        answers = torch.cat([decoder(latent[None]).clamp(-1, 1) for latent in inputs])
    width = width_for(decoder, inputs[:1], factor)
    network = _initialised(_blank(latents, factor, width), rng).to(device).requires_grad_(True)
    rate, optimizer = RATE / width, torch.optim.Adam(network.parameters())
    for step, (z, picture) in enumerate(_crops(inputs, answers, factor, steps, rng)):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = (network(z) - picture).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(step + 1, steps)
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def tiny_decoder_of(weights: Mapping[str, Tensor], factor: int) -> TinyDecoder:
    """The network of these weights, for inference.

    Args:
        weights: of `distil_tiny_decoder`.
        factor: as there.
    """
    width, channels = weights["conv_in.weight"].shape[:2]
    network = TinyDecoder(channels, _doublings(factor), width)
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def _blank(latent: Tensor, factor: int, width: int) -> TinyDecoder:
    with torch.random.fork_rng(devices=[]):  # torch draws its own first weights
        return TinyDecoder(latent.shape[1], _doublings(factor), width).to(latent.device)


def _doublings(factor: int) -> int:
    return factor.bit_length() - 1


def _initialised(network: TinyDecoder, rng: torch.Generator) -> TinyDecoder:
    """Weights drawn anew, of a generator of their own: nobody else's numbers change."""
    with torch.no_grad():
        for path, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                bound = 0.0 if path.endswith("second") else math.sqrt(6.0 / layer.weight[0].numel())
                layer.weight.copy_((torch.rand(layer.weight.shape, generator=rng) * 2 - 1) * bound)
                if layer.bias is not None:
                    layer.bias.zero_()
    return network


def _variants(latents: Tensor, rng: torch.Generator) -> Tensor:
    noised = [share * latents + noise * torch.randn(latents.shape, generator=rng) for share, noise in _NOISE]
    return torch.cat([latents, latents.flip(3), *noised])


def _crops(latents: Tensor, pictures: Tensor, factor: int, steps: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches of latents and their pictures, cut out alike."""
    height, width = (min(CROP, side) for side in latents.shape[2:])
    count = min(MOST_CROPS, max(1, PIXELS // (height * width)))

    def draw(most: int) -> int:
        return int(torch.randint(most, (1,), generator=rng))

    for _ in range(steps):
        cut, answers = [], []
        for _ in range(count):
            which = draw(len(latents))
            top, left = draw(latents.shape[2] - height + 1), draw(latents.shape[3] - width + 1)
            cut.append(latents[which, :, top : top + height, left : left + width])
            rows, columns = slice(top * factor, (top + height) * factor), slice(left * factor, (left + width) * factor)
            answers.append(pictures[which, :, rows, columns])
        yield torch.stack(cut), torch.stack(answers)
