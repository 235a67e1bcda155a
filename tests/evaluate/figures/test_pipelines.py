"""A float bundle's pictures are those of diffusers' own pipelines: same files, same scheduler, same first noise.

diffusers draws some noise itself; there it is made to draw ours, and to take the mean of what its VAE encodes, as our graphs do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.core.errors import UsageError
from quad.evaluate.figures.metrics import psnr
from quad.runtime.pipeline import QuadPipeline
from tests.evaluate.stable_diffusion import open_pipeline, save_pipeline, scheduler
from tests.model.prompt_rules import Rules

PROMPT, NEGATIVE, STEPS, GUIDANCE = "a painting of the cat, highly detailed", "blurry", 8, 7.5
BAR_DB = 45.0
# diffusers' Euler schedulers make NumPy warn of a torch that copies no array as NumPy 2 wants it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
SAMPLERS: dict[str, Callable[[], Any]] = {
    "pndm": scheduler,
    "euler-v": lambda: diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, prediction_type="v_prediction",
        timestep_spacing="trailing",
    ),
    "ddim-v": lambda: diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type="v_prediction",
    ),
    "euler": lambda: diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A directory, the bundle made of it, and what both are given."""

    directory: Path
    ours: QuadPipeline
    width: int
    height: int

    @property
    def noise(self) -> NDArray[np.float32]:
        return np.random.default_rng(7).standard_normal((1, 4, self.height // 8, self.width // 8)).astype(np.float32)

    @property
    def picture(self) -> Image.Image:
        """Smooth colours with some grain."""
        rows, columns = np.indices((self.height, self.width)) / self.height
        planes = np.stack([rows, columns, np.abs(np.sin(5 * rows * columns))], axis=-1)
        grain = np.random.default_rng(1).normal(0, 0.03, planes.shape)
        return Image.fromarray(np.clip((planes + grain) * 255, 0, 255).astype(np.uint8))

    @property
    def mask(self) -> Image.Image:
        plane = np.zeros((self.height, self.width), np.uint8)
        plane[self.height // 5 : self.height // 2, self.width // 4 : 3 * self.width // 4] = 255
        return Image.fromarray(plane)

    def call(self, task: str, **given: Any) -> NDArray[np.uint8]:
        made = self.ours(
            PROMPT,
            task=task,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            latents=self.noise,
            mask_grow=0,
            width=self.width,
            height=self.height,
            **given,
        )
        assert not made.notes
        return np.asarray(made.images[0])

    def theirs(self, kind: Any, **given: Any) -> NDArray[np.uint8]:
        size = {} if "image" in given else {"height": self.height, "width": self.width}
        pipe = open_pipeline(self.directory, kind)
        made = pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **size, **given)
        return np.asarray(made.images[0])

    def pasted(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As ours: outside of the mask, the given picture."""
        return np.where(np.asarray(self.mask)[..., None] > 0, picture, np.asarray(self.picture))


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """`pair_of(channels, sampler, size, ...)`: a bundle for each model and its options; "euler-v" has another size before its own."""
    made: dict[tuple[Any, ...], tuple[Path, QuadPipeline]] = {}

    def pair(channels: int, sampler: str, size: str = "64x64", **options: Any) -> Pair:
        key = (channels, sampler, *options.items())
        if key not in made:
            root = tmp_path_factory.mktemp("sd")
            directory = save_pipeline(root, channels, SAMPLERS[sampler]())
            sizes = "64x128,64x64" if sampler == "euler-v" else None
            build(BuildRequest(directory, {}, root / "phone", precision="float", size=sizes, **options))
            made[key] = directory, QuadPipeline.from_pretrained(root / "phone")
        return Pair(*made[key], *map(int, size.split("x")))

    return pair


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pair], None]:
    """diffusers draws the pair's noise, and takes the mean of what its VAE encodes."""

    def draw(pair: Pair) -> None:
        noise = torch.from_numpy(pair.noise)
        for module in (pipeline_stable_diffusion_img2img, pipeline_stable_diffusion_inpaint):
            monkeypatch.setattr(module, "randn_tensor", lambda *_args, **_kwargs: noise.clone())
        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_args, **_kwargs: self.mode())

    return draw


def _near(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], bar_db: float = BAR_DB) -> None:
    assert theirs.std() > 15  # a flat picture would be near anything
    assert psnr(ours, theirs) >= bar_db


@pytest.mark.parametrize(("sampler", "size"), [("pndm", "64x64"), ("euler-v", "64x128"), ("euler-v", "64x64")])
def test_text_to_image(sampler: str, size: str, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(4, sampler, size)
    theirs = pair.theirs(diffusers.StableDiffusionPipeline, latents=torch.from_numpy(pair.noise))
    ours = pair.call("text-to-image")
    assert ours.shape == (pair.height, pair.width, 3)
    _near(ours, theirs)


def test_weighted_words(pair_of: Callable[..., Pair]) -> None:
    """diffusers is given the hidden states that A1111's rules make."""
    pair = pair_of(4, "pndm")
    pipe = open_pipeline(pair.directory, diffusers.StableDiffusionPipeline)
    rules = Rules(pipe.tokenizer, copy.deepcopy(pipe.text_encoder).double())
    prompts = {"prompt": "a (painting:1.4) of [the cat], ((highly detailed", "negative_prompt": "(blurry:0.6)"}
    states = {f"{name}_embeds": torch.from_numpy(rules.features(text)).float() for name, text in prompts.items()}
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": torch.from_numpy(pair.noise)}
    theirs = np.asarray(pipe(**states, **given, height=64, width=64).images[0])
    ours = pair.ours(**prompts, task="text-to-image", num_inference_steps=STEPS, latents=pair.noise)
    assert not ours.notes
    _near(np.asarray(ours.images[0]), theirs, 60.0)
    assert psnr(pair.call("text-to-image"), theirs) < 40  # what the weights do is seen


def test_clip_skip_and_long_prompts(pair_of: Callable[..., Pair]) -> None:
    """A prompt of two chunks, and one of one chunk, for which diffusers' U-Net has half the context; both without the last layer."""
    pair = pair_of(4, "pndm", clip_skip=2, prompt_chunks=2)
    pipe = open_pipeline(pair.directory, diffusers.StableDiffusionPipeline)
    encoder = copy.deepcopy(pipe.text_encoder).double()
    del encoder.encoder.layers[-1]
    rules = Rules(pipe.tokenizer, encoder)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": torch.from_numpy(pair.noise)}
    long = "the cat sat on the (mat:1.3), a painting of the sea, " * 3 + "BREAK at night"
    pictures = []
    for prompt, negative, tokens in ((PROMPT, NEGATIVE, 77), (long, "blurry BREAK [night]", 154)):
        states = {f"{name}_embeds": torch.from_numpy(rules.features(text)).float()
                  for name, text in (("prompt", prompt), ("negative_prompt", negative))}  # fmt: skip
        assert {state.shape[1] for state in states.values()} == {tokens}
        theirs = np.asarray(pipe(**states, **given, height=64, width=64).images[0])
        ours = pair.ours(prompt, negative_prompt=negative, task="text-to-image", num_inference_steps=STEPS, latents=pair.noise)
        assert not ours.notes
        _near(np.asarray(ours.images[0]), theirs, 60.0)
        pictures.append(theirs)
    assert psnr(*pictures) < 40


def test_textual_inversion(pair_of: Callable[..., Pair], tmp_path: Path) -> None:
    """Two words, one of two vectors, as diffusers loads them."""
    pair = pair_of(4, "pndm")
    pipe = open_pipeline(pair.directory, diffusers.StableDiffusionPipeline)
    drawn = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    for word, vectors in (("<toy>", drawn[:1]), ("<fog>", drawn[1:])):
        save_file({word: vectors}, tmp_path / f"{word}.safetensors")
        pipe.load_textual_inversion(str(tmp_path / f"{word}.safetensors"), token=word)
        assert pair.ours.load_textual_inversion(tmp_path / f"{word}.safetensors") == (word,)
    prompts = {"prompt": "a painting of <toy>, highly detailed", "negative_prompt": "<fog> blurry"}
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": torch.from_numpy(pair.noise)}
    theirs = np.asarray(pipe(**prompts, **given, height=64, width=64).images[0])
    ours = pair.ours(**prompts, task="text-to-image", num_inference_steps=STEPS, latents=pair.noise)
    pair.ours.unload_textual_inversion()
    assert not ours.notes
    _near(np.asarray(ours.images[0]), theirs, 60.0)


@pytest.mark.parametrize(("sampler", "size"), [("pndm", "64x64"), ("euler-v", "64x128")])
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_image_to_image(sampler: str, size: str, strength: float, pair_of: Callable[..., Pair], drawing: Callable[[Pair], None]) -> None:
    pair = pair_of(4, sampler, size)
    drawing(pair)
    theirs = pair.theirs(diffusers.StableDiffusionImg2ImgPipeline, image=pair.picture, strength=strength)
    _near(pair.call("transform", image=pair.picture, strength=strength), theirs)
    if strength == 0.8:
        np.testing.assert_array_equal(pair.call("transform", image=pair.picture), pair.call("transform", image=pair.picture, strength=0.8))


@pytest.mark.parametrize(("channels", "sampler", "size"), [(4, "pndm", "64x64"), (4, "euler-v", "64x128"), (9, "ddim-v", "64x64")])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(
    channels: int, sampler: str, size: str, strength: float, pair_of: Callable[..., Pair], drawing: Callable[[Pair], None]
) -> None:
    pair = pair_of(channels, sampler, size)
    drawing(pair)
    given = {"image": pair.picture, "mask_image": pair.mask}
    kind = diffusers.StableDiffusionInpaintPipeline
    theirs = pair.theirs(kind, **given, strength=strength, height=pair.height, width=pair.width)
    for task in ("removal", "inpainting"):
        _near(pair.call(task, **given, strength=strength), pair.pasted(theirs))


def test_text_and_image_to_image_of_an_inpainting_model(pair_of: Callable[..., Pair], drawing: Callable[[Pair], None]) -> None:
    pair = pair_of(9, "ddim-v")
    drawing(pair)
    everything = Image.fromarray(np.full((64, 64), 255, np.uint8))
    kind = diffusers.StableDiffusionInpaintPipeline
    theirs = pair.theirs(kind, image=pair.picture, mask_image=everything, strength=1.0, height=64, width=64)
    _near(pair.call("text-to-image"), theirs)
    theirs = pair.theirs(kind, image=pair.picture, mask_image=everything, strength=0.8, height=64, width=64)
    _near(pair.call("transform", image=pair.picture), theirs)


@pytest.mark.parametrize("scale", [1.5, 1.0])
def test_editing_by_instruction(scale: float, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(8, "euler")
    assert "text-to-image" not in pair.ours.tasks
    kind = diffusers.StableDiffusionInstructPix2PixPipeline
    theirs = pair.theirs(kind, image=pair.picture, image_guidance_scale=scale, latents=torch.from_numpy(pair.noise))
    _near(pair.call("transform", image=pair.picture, image_guidance_scale=scale), theirs)
    if scale == 1.5:
        _near(pair.call("transform", image=pair.picture), theirs)
        _near(pair.call("removal", image=pair.picture, mask_image=pair.mask), pair.pasted(theirs))


def test_wishes_that_a_task_cannot_grant(pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(4, "pndm")
    with pytest.raises(UsageError, match="image_guidance_scale: expected a task with picture guidance, found transform"):
        pair.ours(task="transform", image=pair.picture, image_guidance_scale=2.0)
    with pytest.raises(UsageError, match="strength: expected a task that begins at a picture, which text-to-image does not"):
        pair.ours(task="text-to-image", strength=0.5)
    with pytest.raises(UsageError, match=r"strength: expected more than 0, at most 1, found 1\.5"):
        pair.ours(task="transform", image=pair.picture, strength=1.5)
    with pytest.raises(UsageError, match=r"guidance_scale: expected a finite number, found nan"):
        pair.ours(task="transform", image=pair.picture, guidance_scale=float("nan"))
