"""Steps that are not computed: off they change no bit, on they leave out what they say, and adapters stay exact under them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad import QuadPipeline
from quad.core.manifest import NoiseSchedule
from quad.runtime.engines.graph import Graph
from quad.runtime.provenance.parameters import parameters_text
from quad.runtime.samplers.names import SAMPLER_NAMES
from tests.conftest import Spy
from tests.runtime.conftest import write_manifest


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> QuadPipeline:
    """Of a schedule that leaves a signal at its end, as one of the samplers needs."""
    root = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("shortcuts") / "phone")
    write_manifest(root, schedule=NoiseSchedule(rescale_zero_snr=False))
    return QuadPipeline.from_pretrained(root, threads=1)


def _latents(pipe: QuadPipeline, **words: Any) -> NDArray[np.float32]:
    latents: NDArray[np.float32] = pipe(
        "remove the car", **{"task": "text-to-image", "guidance_scale": 3.0, **words}, output_type="latent"
    ).images
    return latents


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_guidance_on_all_of_the_way_is_guidance(pipe: QuadPipeline, sampler: str) -> None:
    plain = _latents(pipe, sampler=f"{sampler}:4")
    np.testing.assert_array_equal(_latents(pipe, sampler=f"{sampler}:4", guidance_interval="0:1"), plain)
    part = _latents(pipe, sampler=f"{sampler}:4", guidance_interval=(0.3, 0.7))
    assert np.isfinite(part).all()
    assert (part != plain).any()


def test_outside_of_the_interval_a_step_takes_one_call(pipe: QuadPipeline, spy: Spy) -> None:
    calls = spy(Graph, "run", lambda graph, inputs: (graph is pipe.graph("unet"), inputs))
    _latents(pipe, sampler="ddim:8", guidance_interval="0.25:0.75")
    timesteps = [float(inputs["timestep"][0]) for is_unet, inputs in calls if is_unet]
    for timestep in set(timesteps):
        assert timesteps.count(timestep) == (2 if 0.25 <= 1 - timestep / 1000 <= 0.75 else 1)
    assert len(timesteps) == 8 + 4


def test_without_guidance_the_interval_changes_nothing_and_is_told(pipe: QuadPipeline) -> None:
    plain = _latents(pipe, guidance_scale=1.0)
    np.testing.assert_array_equal(_latents(pipe, guidance_scale=1.0, guidance_interval="0.2:0.4"), plain)
    out = pipe("the car", guidance_scale=1.0, guidance_interval="0.2:0.4")
    assert out.notes == ("guidance interval: it counts only with guidance above 1, it was not used",)
    assert out.facts[0].guidance_interval is None


def test_an_interval_without_a_step_is_plain_and_told(pipe: QuadPipeline) -> None:
    words = {"sampler": "ddim:2", "guidance_interval": "0.9:0.95"}
    np.testing.assert_array_equal(_latents(pipe, **words), _latents(pipe, sampler="ddim:2", guidance_scale=1.0))
    out = pipe("the car", task="text-to-image", guidance_scale=3.0, **words)
    assert "guidance interval 0.9:0.95: no step of ddim:2 falls into it, the prompt counts plainly" in out.notes


def test_the_file_of_a_picture_says_it(pipe: QuadPipeline) -> None:
    out = pipe("the car", task="text-to-image", guidance_scale=3.0, guidance_interval="0.1:0.9", sampler="ddim:4")
    assert "Guidance interval: 0.1 to 0.9" in parameters_text(out.facts[0])
    assert "Guidance interval" not in parameters_text(pipe("the car", guidance_scale=3.0).facts[0])


def test_adapters_are_switched_exactly_under_an_interval(pipe: QuadPipeline) -> None:
    words = {"guidance_interval": "0.3:0.7", "sampler": "ddim:4"}
    base = _latents(pipe, **words)
    pictures = []
    for name in ("transform", "sketch", "transform"):
        pipe.set_adapters(name)
        pictures.append(_latents(pipe, **words))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()
    pipe.disable_lora()
    np.testing.assert_array_equal(_latents(pipe, **words), base)
