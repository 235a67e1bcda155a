"""A float bundle of SDXL makes diffusers' own pictures: same files, same scheduler, same first noise, same sizes.

diffusers draws some noise itself; there it is made to draw ours, and to take the mean of what its VAE encodes, as our graphs do.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img, pipeline_stable_diffusion_xl_inpaint
from numpy.typing import NDArray
from PIL import Image

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.core.errors import UsageError
from quad.evaluate.full_precision import FullPrecision
from quad.runtime.pipeline import QuadPipeline
from quad.serve.api import NewRequest
from tests.stable_diffusion_xl import save_xl

PROMPT, NEGATIVE, STEPS, SIDE = "a painting of the cat, highly detailed", "blurry", 4, 64
BAR_DB = 60.0
# diffusers' Euler schedulers make NumPy warn of a torch that copies no array as NumPy 2 wants it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
Made = Callable[[int], tuple[Path, QuadPipeline]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A directory of a number of channels, and the bundle of it."""
    bundles: dict[int, tuple[Path, QuadPipeline]] = {}

    def make(channels: int) -> tuple[Path, QuadPipeline]:
        if channels not in bundles:
            root = tmp_path_factory.mktemp("xl")
            directory = save_xl(root, channels)
            build(BuildRequest(directory, {}, root / "phone", precision="float"))
            bundles[channels] = directory, QuadPipeline.from_pretrained(root / "phone")
        return bundles[channels]

    return make


def noise() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((1, 4, SIDE // 8, SIDE // 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws our noise, and takes the mean of what its VAE encodes."""
    for module in (pipeline_stable_diffusion_xl_img2img, pipeline_stable_diffusion_xl_inpaint):
        monkeypatch.setattr(module, "randn_tensor", lambda *_args, **_kwargs: torch.from_numpy(noise()))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_args, **_kwargs: self.mode())


def picture() -> Image.Image:
    """Smooth colours with some grain."""
    rows, columns = np.indices((SIDE, SIDE)) / SIDE
    planes = np.stack([rows, columns, np.abs(np.sin(5 * rows * columns))], axis=-1)
    grain = np.random.default_rng(1).normal(0, 0.03, planes.shape)
    return Image.fromarray(np.clip((planes + grain) * 255, 0, 255).astype(np.uint8))


def mask() -> Image.Image:
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[16:40, 8:48] = 255
    return Image.fromarray(plane)


def ours(pipe: QuadPipeline, task: str, **given: Any) -> NDArray[np.float32]:
    """The last latent of one run, finer than a picture's 8 bits, and not pasted into another."""
    words = {
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "latents": noise(),
        "mask_grow": 0,
        "output_type": "latent",
        **given,
    }
    return np.asarray(pipe(PROMPT, task=task, **words).images)


def theirs(directory: Path, kind: Any, **given: Any) -> NDArray[np.float32]:
    pipe = kind.from_pretrained(directory, local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    words = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "output_type": "latent", **given}
    return np.asarray(pipe(PROMPT, **words).images)


def db(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Signal over noise of latents, of which the signal is what varies."""
    assert found.shape == expected.shape
    return float(10 * np.log10(expected.var() / max(np.mean((found - expected) ** 2), 1e-20)))


SIZED = {"original_size": (40, 96), "crops_coords_top_left": (3, 17), "target_size": (64, 32)}


def test_text_to_image(made: Made) -> None:
    directory, pipe = made(4)
    sized = {"height": SIDE, "width": SIDE, "latents": torch.from_numpy(noise())}
    plain = ours(pipe, "text-to-image")
    assert db(plain, theirs(directory, diffusers.StableDiffusionXLPipeline, **sized)) >= BAR_DB
    empty = ours(pipe, "text-to-image", negative_prompt="")
    assert db(empty, theirs(directory, diffusers.StableDiffusionXLPipeline, **sized, negative_prompt=None)) >= BAR_DB
    assert db(empty, plain) < 40
    told = ours(pipe, "text-to-image", **SIZED)
    assert db(told, theirs(directory, diffusers.StableDiffusionXLPipeline, **sized, **SIZED)) >= BAR_DB
    assert db(told, plain) < 40
    negative = {"negative_original_size": (32, 32), "negative_target_size": (256, 256), "negative_crops_coords_top_left": (9, 9)}
    both = ours(pipe, "text-to-image", **SIZED, **negative)
    assert db(both, theirs(directory, diffusers.StableDiffusionXLPipeline, **sized, **SIZED, **negative)) >= BAR_DB
    assert db(both, told) < 40


@pytest.mark.parametrize("channels", [4, pytest.param(9, marks=pytest.mark.soak)])
def test_the_full_precision_side_of_a_page_makes_the_same_picture(channels: int, made: Made) -> None:
    directory, pipe = made(channels)
    side = FullPrecision.open(directory.parent / "phone", directory, {})
    for seed in (3, 4):
        answered = side.picture(NewRequest(prompt=PROMPT, task="text-to-image", num_inference_steps=STEPS, seed=seed))
        (found,) = pipe(PROMPT, task="text-to-image", num_inference_steps=STEPS, seed=seed).images
        expected = np.asarray(Image.open(BytesIO(answered.image)), np.float64)
        assert expected.std() > 10
        assert np.abs(np.asarray(found, np.float64) - expected).max() <= 1


def test_image_to_image(made: Made) -> None:
    directory, pipe = made(4)
    found = ours(pipe, "transform", image=picture(), strength=0.5, guidance_scale=5.0)
    expected = theirs(directory, diffusers.StableDiffusionXLImg2ImgPipeline, image=picture(), strength=0.5, guidance_scale=5.0)
    assert db(found, expected) >= BAR_DB


@pytest.mark.parametrize("channels", [4, pytest.param(9, marks=pytest.mark.soak)])
def test_inpainting(channels: int, made: Made) -> None:
    directory, pipe = made(channels)
    given = {"image": picture(), "mask_image": mask(), "strength": 1.0, "guidance_scale": 5.0}
    found = ours(pipe, "inpainting", **given)
    expected = theirs(directory, diffusers.StableDiffusionXLInpaintPipeline, **given, height=SIDE, width=SIDE)
    assert db(found, expected) >= BAR_DB


@pytest.mark.soak
def test_editing_by_instruction(made: Made) -> None:
    directory, pipe = made(8)
    found = ours(pipe, "transform", image=picture(), guidance_scale=5.0, image_guidance_scale=1.5)
    kind = diffusers.StableDiffusionXLInstructPix2PixPipeline
    given = {"image": picture(), "guidance_scale": 5.0, "image_guidance_scale": 1.5, "height": SIDE, "width": SIDE}
    assert db(found, theirs(directory, kind, **given, latents=torch.from_numpy(noise()))) >= BAR_DB


@pytest.mark.parametrize("pair", [(1,), (1, -2), "ab", (1.5, 2), 3])
def test_a_size_that_is_none(pair: Any, made: Made) -> None:
    with pytest.raises(UsageError, match="target_size: expected two whole numbers from 0 to 65536, rows first, found"):
        ours(made(4)[1], "text-to-image", target_size=pair)
