"""Captions and sizes as the U-Net reads them: hidden states of both text encoders, the prompt as a whole, and the sizes' sinusoids."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from torch.nn.functional import pad

from quad.model.base.text.clip_pair import ClipPair
from quad.zoo.train.text import HIDDEN, encode
from quad.zoo.train.xl.networks import SIZE_CHANNELS, xl_tokenizer

DEFAULT_SIZES = (128, 128, 0, 0, 128, 128)
FIRST_DROPPED, SECOND_DROPPED = 0.2, 0.1


def size_rows(sizes: Tensor, width: int) -> Tensor:
    """The sinusoids of sizes `(N, 6)` as a row `(N, 1, width)` behind the states."""
    waves = get_timestep_embedding(sizes.flatten().float(), SIZE_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
    rows = waves.reshape(len(sizes), -1)
    filled: Tensor = pad(rows, (0, -rows.shape[1] % width)).unflatten(1, (-1, width))
    return filled


class PairWords:
    """The words of a batch.

    Args:
        dropped: leave one of the encoders out of some samples, so that the other is worth reading.
    """

    def __init__(self, pair: ClipPair, dropped: bool = False) -> None:
        self.pair, self.dropped = pair, dropped
        self.empty = encode(xl_tokenizer(), [""])

    def __call__(self, ids: Tensor, sizes: Tensor | None) -> Tensor:
        """`(N, rows, D)`; an empty caption is zeros."""
        states = self.pair(ids).last_hidden_state
        states = states * (ids != self.empty).any(1).to(states.dtype)[:, None, None]
        if self.dropped:
            which = torch.rand(len(states), 1, 1)
            first = (which > FIRST_DROPPED).to(states.dtype)
            second = (which < 1 - SECOND_DROPPED).to(states.dtype)
            tokens, whole = states[:, :-1], states[:, -1:]
            states = torch.cat([torch.cat([tokens[..., :HIDDEN] * first, tokens[..., HIDDEN:] * second], 2), whole * second], 1)
        sizes = torch.tensor([DEFAULT_SIZES]).expand(len(states), 6) if sizes is None else sizes
        return torch.cat([states, size_rows(sizes, states.shape[2]).to(states.dtype)], dim=1)
