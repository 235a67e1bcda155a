"""Guidance is `u + g (c - u)`, in one run or in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import VerificationError
from quad.core.manifest import LatentSpec, SamplerSpec, TaskSpec
from quad.runtime.conditioning.denoising import beside_of
from quad.runtime.conditioning.guidance import Guidance, PictureGuidance, guided_network, is_guided


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
    np.testing.assert_allclose(guided_network(session, beside, (c, u), Guidance(scale=3.0))(x, 10.0), 10 + 1 + 3 * (2 - 1))
    assert session.batches == batches
    np.testing.assert_allclose(guided_network(session, beside, (c, None), Guidance(scale=3.0))(x, 10.0), 12)
    assert session.batches[-1] == 1


@pytest.mark.parametrize(("batch", "batches"), [(None, [3]), (1, [1, 1, 1])])
def test_guidance_by_a_picture_too(batch: int | None, batches: list[int]) -> None:
    """`Linear` adds the text's mean; here it adds that of the channels beside the latent too."""

    class Seeing(Linear):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
            return np.asarray(super().run(inputs) + 10 * inputs["sample"][:, 4:].mean(axis=(1, 2, 3))[:, None, None, None])

    session = Seeing(batch, 8)
    seen, none = np.ones((1, 4, 2, 2), np.float32), np.zeros((1, 4, 2, 2), np.float32)
    c, u = np.full((1, 3, 5), 2, np.float32), np.full((1, 3, 5), 1, np.float32)
    network = guided_network(session, seen, (c, u), Guidance(scale=3.0), PictureGuidance(1.5, none))
    # u = 1, i = 11, c = 12, all at timestep 0: u + 3 (c - i) + 1.5 (i - u)
    np.testing.assert_allclose(network(np.zeros((1, 4, 2, 2), np.float32), 0.0), 1 + 3 * 1 + 1.5 * 10)
    assert session.batches == batches


@pytest.mark.parametrize(
    ("guidance", "pictured", "guided"),
    [
        (7.5, None, True),
        (1.001, None, True),
        (1.0, None, False),
        (0.0, None, False),
        (7.5, 1.0, True),
        (7.5, 0.9, False),
        (1.0, 1.5, False),
    ],
)
def test_where_there_is_guidance(guidance: float, pictured: float | None, guided: bool) -> None:
    sampler = SamplerSpec(kind="euler", steps=2)
    spec = TaskSpec(
        adapter=None, sampler=sampler, condition="none", mask="ones", guidance=guidance, image_guidance=pictured or msgspec.UNSET
    )
    assert is_guided(spec) == guided


def test_channels() -> None:
    latent = LatentSpec(channels=4, factor=8, scale=(1.0,) * 4, shift=(0.0,) * 4)
    assert beside_of(Linear(1), latent) == ("condition", "mask")
    assert beside_of(Linear(1, 4), latent) == ()
    with pytest.raises(VerificationError, match="sample with 4 or 9 channels"):
        beside_of(Linear(1, 7), latent)
    editing = msgspec.structs.replace(latent, beside=("raw-condition",))
    assert beside_of(Linear(1, 8), editing) == ("raw-condition",)
    with pytest.raises(VerificationError, match="sample with 8 channels"):
        beside_of(Linear(1), editing)
