"""The distillation of a tiny decoder: it answers as its teacher on latents that it has not seen, and draws from nobody's random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quad.model.tiny_decoder import LARGEST_SHARE, LEAST_WIDTH, WIDTH, TinyDecoder, multiplications
from quad.quantize.distill.tiny_decoder import distil_tiny_decoder, tiny_decoder_of, width_for

FACTOR = 4


class Teacher(nn.Module):
    """A picture whose colours are sums of the latent's channels; `width` makes it as large as is wanted."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.wide, self.colours = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        picture: Tensor = self.colours(nn.functional.interpolate(self.wide(latent), scale_factor=float(FACTOR), mode="bilinear"))
        return picture


def smooth(count: int, seed: int) -> Tensor:
    coarse = torch.randn(count, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")


def test_it_answers_as_its_teacher_on_other_latents() -> None:
    teacher, unseen = Teacher(), smooth(8, seed=2)
    student = tiny_decoder_of(distil_tiny_decoder(teacher, smooth(12, seed=1), FACTOR, steps=120), FACTOR)
    with torch.no_grad():
        answers = teacher(unseen).clamp(-1, 1)
        error = (student(unseen) - answers).abs().mean()
    assert error < 0.5 * (answers - answers.mean()).abs().mean()


def test_twice_the_same_and_no_number_of_others_is_drawn() -> None:
    teacher, state = Teacher(), torch.get_rng_state()
    first, second = (distil_tiny_decoder(teacher, smooth(4, seed=1), FACTOR, steps=3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("wide", "width"), [(2**14, WIDTH), (4, LEAST_WIDTH)])
def test_its_width_goes_by_the_teachers_cost(wide: int, width: int) -> None:
    latent, teacher = torch.zeros(1, 4, 8, 8), Teacher(wide)
    assert width_for(teacher, latent, FACTOR) == width
    small = multiplications(TinyDecoder(4, 2, width), latent) <= LARGEST_SHARE * multiplications(teacher, latent)
    assert small == (width == WIDTH)


@pytest.mark.parametrize("doublings", [0, 1, 2, 3, 4])
def test_every_power_of_two(doublings: int) -> None:
    factor = 2**doublings
    weights = TinyDecoder(4, doublings, 16).state_dict()
    assert tiny_decoder_of(weights, factor)(torch.zeros(1, 4, 2, 3)).shape == (1, 3, 2 * factor, 3 * factor)


def test_multiplications_are_those_of_products() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert multiplications(network, torch.zeros(1, 4, 5, 7)) == 5 * 7 * (9 * 4 * 6 + 6 * 2)
