"""A small convolutional decoder that may stand for a model's own: from a latent to the picture, in a hundredth of the multiplications.

    z -> 3 tanh(z / 3) -> conv -> [blocks, double, conv] for each doubling -> conv -> picture

A block is x + conv(relu(conv(relu(x)))). Convolutions are 3x3, doubling repeats each pixel, so that every engine that runs the model's own
decoder has its operators. Latents far outside of what was seen, as previews of the first steps are, are bent back by the tanh.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, LEAST_WIDTH = 64, 8
LARGEST_SHARE = 0.25  # of the own decoder's multiplications
_BOUND = 3.0  # standard deviations of a latent
_BLOCKS = (3, 2, 1)  # at the latent's resolution, at twice that, at more; at the picture's own there is none


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # it begins as the identity
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + changed


class _Doubling(nn.Module):
    def __init__(self, width: int, next_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, next_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class TinyDecoder(nn.Module):
    """`latent (1, C, h, w)` in model space -> `image (1, 3, f h, f w)`, about [-1, 1], unclamped.

    Args:
        channels: of the latent.
        doublings: log2 of picture pixels by latent pixel.
        width: channels at the latent's resolution and twice that; half as many at each further doubling.
    """

    def __init__(self, channels: int, doublings: int, width: int) -> None:
        super().__init__()
        widths = [max(LEAST_WIDTH, width >> max(0, level - 1)) for level in range(doublings + 1)]
        layers: list[nn.Module] = []
        for level, (here, above) in enumerate(pairwise(widths)):
            layers += [_Block(here) for _ in range(_BLOCKS[min(level, len(_BLOCKS) - 1)])]
            layers.append(_Doubling(here, above))
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        bent = _BOUND * torch.tanh(latent / _BOUND)
        image: Tensor = self.conv_out(self.layers(self.conv_in(bent)))
        return image


def multiplications(network: nn.Module, latent: Tensor) -> int:
    """Multiplications of all convolutions and linear layers in one call."""
    counted: list[int] = []

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        counted.append(weight[0].numel() * output.numel())

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    try:
        with torch.no_grad():
            network(latent)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)
