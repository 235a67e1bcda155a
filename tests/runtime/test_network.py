"""Guidance is `u + g (c - u)`, in one run or in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import VerificationError
from quad.runtime.network import guided_network, sample_channels


class Linear:
    """A session whose output is known: latent channels + mean of the text + t."""

    def __init__(self, batch: int | None, channels: int = 9) -> None:
        self.inputs = {"sample": (batch, channels, 2, 2), "encoder_hidden_states": (batch, 3, 5)}
        self.batches: list[int] = []

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        self.batches.append(len(inputs["sample"]))
        text = inputs["encoder_hidden_states"].mean(axis=(1, 2))
        return np.asarray(inputs["sample"][:, :4] + text[:, None, None, None] + inputs["timestep"])


@pytest.mark.parametrize(("batch", "batches"), [(None, [2]), (1, [1, 1])])
def test_guidance(batch: int | None, batches: list[int]) -> None:
    session = Linear(batch)
    beside = np.ones((1, 5, 2, 2), np.float32)
    c, u = np.full((1, 3, 5), 2, np.float32), np.full((1, 3, 5), 1, np.float32)
    x = np.zeros((1, 4, 2, 2), np.float32)
    np.testing.assert_allclose(guided_network(session, beside, (c, u), 3.0)(x, 10.0), 10 + 1 + 3 * (2 - 1))
    assert session.batches == batches
    np.testing.assert_allclose(guided_network(session, beside, (c, None), 3.0)(x, 10.0), 12)
    assert session.batches[-1] == 1


def test_channels() -> None:
    assert sample_channels(Linear(1), 4) == 9
    assert sample_channels(Linear(1, 4), 4) == 4
    with pytest.raises(VerificationError, match="sample with 4 or 9 channels"):
        sample_channels(Linear(1, 7), 4)
