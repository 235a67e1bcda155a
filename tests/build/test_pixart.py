"""A transformer denoiser with its T5, from their files to pictures: the same way as a U-Net, the same laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from quad.build.build import BuildRequest, BuildResult, build
from quad.compile.graph_specs import sinusoid_of
from quad.core.errors import UnsupportedError
from quad.core.manifest import TOKENIZER_FILE
from quad.core.ports import Sinusoid
from quad.core.slots import TEXT_ENCODER, UNET
from quad.evaluate.figures.metrics import psnr
from quad.model.base.open import open_model
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from tests.pixart import ADAPTERS, save_adapters, save_pixart

PROMPT, STEPS = "A photo of the red house", 8
BAR_DB, QUANTIZED_DB = 45.0, 36.0
BUILDS = ("float", "w8a16", "mixed:50")


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    root = tmp_path_factory.mktemp("pixart")
    directory, files = save_pixart(root / "model"), save_adapters(root / "loras")
    return BuildRequest(directory, files, root / "phone", samples=calibration_samples(directory, files), distill_steps=2, size="128x64")


@pytest.fixture(scope="module")
def made(request_of: BuildRequest) -> Callable[[str], BuildResult]:
    """Builds by precision, each once."""
    found: dict[str, BuildResult] = {}

    def make(precision: str) -> BuildResult:
        if precision not in found:
            output = request_of.output.parent / precision.replace(":", "")
            found[precision] = build(replace(request_of, output=output, precision=precision))
        return found[precision]

    return make


@pytest.fixture(scope="module")
def theirs(request_of: BuildRequest) -> Callable[[str | None], Any]:
    """diffusers' own pipeline, with an adapter that PEFT loaded into both of its networks."""

    def load(network: Any, file: Path, prefix: str, rank: int) -> None:
        tensors = {key.removeprefix(prefix): tensor for key, tensor in load_file(file).items() if key.startswith(prefix)}
        paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        if paths:
            get_peft_model(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=paths))
            state = network.state_dict()
            for key, tensor in tensors.items():
                path, role, _ = key.rsplit(".", 2)
                state[f"{path}.{role}.default.weight"].copy_(tensor)

    def open_with(adapter: str | None) -> Any:
        pipe = diffusers.PixArtAlphaPipeline.from_pretrained(request_of.model, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        if adapter is not None:
            load(pipe.transformer, request_of.adapters[adapter], "transformer.", ADAPTERS[adapter][0])
            load(pipe.text_encoder, request_of.adapters[adapter], "text_encoder.", ADAPTERS[adapter][0])
        return pipe

    return open_with


def noise() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((1, 4, 8, 16)).astype(np.float32)


def picture(pipe: QuadPipeline, **given: Any) -> NDArray[np.uint8]:
    return np.asarray(pipe(PROMPT, task="text-to-image", num_inference_steps=STEPS, latents=noise(), **given).images[0])


def latent(pipe: QuadPipeline) -> NDArray[np.float32]:
    """The last latent of one run: finer than the picture's 8 bits."""
    seen: list[NDArray[np.float32]] = []
    picture(pipe, callback_on_step_end=lambda _, __, ___, state: seen.append(np.array(state["latents"])))
    return seen[-1]


def sqnr_db(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.mean(expected**2) / np.mean((found - expected) ** 2)))


# diffusers' scheduler makes NumPy warn of a torch that copies no array as NumPy 2 wants it.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("adapter", [None, *sorted(ADAPTERS)])
def test_pictures_are_those_of_diffusers(
    adapter: str | None, made: Callable[[str], BuildResult], theirs: Callable[[str | None], Any]
) -> None:
    pipe = QuadPipeline.from_pretrained(made("float").bundle)
    if adapter is not None:
        pipe.set_adapters(adapter)
    given = {"num_inference_steps": STEPS, "guidance_scale": 4.5, "latents": torch.from_numpy(noise()), "height": 64, "width": 128}
    expected = np.asarray(theirs(adapter)(PROMPT, clean_caption=False, use_resolution_binning=False, **given).images[0])
    ours = picture(pipe)
    assert expected.std() > 15  # a flat picture would be near anything
    assert psnr(ours, expected) >= BAR_DB
    if adapter is not None:
        pipe.disable_lora()
        assert psnr(picture(pipe), expected) < 35  # the adapter counts


@pytest.mark.parametrize("precision", BUILDS)
def test_switching_leaves_no_trace(precision: str, made: Callable[[str], BuildResult]) -> None:
    pipe = QuadPipeline.from_pretrained(made(precision).bundle)
    base = latent(pipe)
    found = []
    for name in ("ink", "clay", "ink"):
        pipe.set_adapters(name)
        found.append(latent(pipe))
    pipe.disable_lora()
    np.testing.assert_array_equal(latent(pipe), base)
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], base)


@pytest.mark.parametrize("adapter", [None, *sorted(ADAPTERS)])
def test_an_integer_graph_is_near_the_float_one(adapter: str | None, made: Callable[[str], BuildResult]) -> None:
    """One call; 16-bit activations."""
    rng = np.random.default_rng(3)
    inputs = {
        "sample": rng.standard_normal((1, 4, 8, 16)).astype(np.float32),
        "timestep": np.array([500.0], np.float32),
        "encoder_hidden_states": np.zeros((1, 120, 12), np.float32),
    }
    outputs: list[NDArray[np.float32]] = []
    for precision in ("float", "w8a16"):
        pipe = QuadPipeline.from_pretrained(made(precision).bundle)
        if adapter is not None:
            pipe.set_adapters(adapter)
        ids = Tokenizer(pipe.bundle.read(TOKENIZER_FILE), pipe.bundle.manifest.text)(PROMPT).ids
        if not outputs:
            inputs["encoder_hidden_states"] = pipe.graph("text_encoder").run({"input_ids": ids})
        outputs.append(pipe.graph("unet").run(inputs))
    assert sqnr_db(outputs[1], outputs[0]) >= QUANTIZED_DB


@pytest.mark.parametrize("precision", BUILDS)
def test_what_a_bundle_holds(precision: str, made: Callable[[str], BuildResult]) -> None:
    result = made(precision)
    assert {slot.component for slot in QuadPipeline.from_pretrained(result.bundle).bundle.slots.slots} == {UNET, TEXT_ENCODER}
    assert set(result.manifest.components) == {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    assert set(result.smoke["unet"]) == {"base", "ink", "clay"}
    assert set(result.smoke["text_encoder"]) == {"base", "ink", "clay"}


def test_what_fills_a_prompt_up_is_not_read(made: Callable[[str], BuildResult]) -> None:
    """Also in integers: rows of zeros stay rows of zeros, and the denoiser passes over them."""
    pipe = QuadPipeline.from_pretrained(made("w8a16").bundle)
    ids = Tokenizer(pipe.bundle.read(TOKENIZER_FILE), pipe.bundle.manifest.text)(PROMPT).ids
    hidden = pipe.graph("text_encoder").run({"input_ids": ids})
    np.testing.assert_array_equal(np.abs(hidden).max(-1) > 0, ids != 0)
    assert 3 < int((ids != 0).sum()) < 100


@pytest.mark.parametrize("task", ["transform", "removal", "sketch", "inpainting"])
def test_tasks_with_a_picture(task: str, made: Callable[[str], BuildResult]) -> None:
    pipe = QuadPipeline.from_pretrained(made("w8a16").bundle)
    rows, columns = np.indices((64, 64)) / 64
    given = Image.fromarray((255 * np.stack([rows, columns, rows * columns], -1)).astype(np.uint8))
    hole = np.zeros((64, 64), np.uint8)
    hole[20:40, 10:50] = 255
    mask = {"mask_image": Image.fromarray(hole)} if pipe.tasks[task].mask == "input" else {}
    found = [np.asarray(pipe(PROMPT, task=task, image=given, seed=seed, **mask).images[0]) for seed in (1, 2)]
    assert not np.array_equal(*found)
    if mask:
        outside = np.ones((64, 64), bool)
        outside[14:46, 4:56] = False
        np.testing.assert_array_equal(found[0][outside], np.asarray(given)[outside])


def test_the_timesteps_embedding_is_the_denoisers_own(request_of: BuildRequest) -> None:
    base = open_model(request_of.model)
    made = sinusoid_of(base)
    assert made == Sinusoid(channels=256, cosine_first=True, shift=0.0)
    timestep = torch.tensor([437.0])
    network: Any = base.unet
    expected = network.adaln_single.emb.time_proj(timestep).numpy()
    np.testing.assert_allclose(made(timestep.numpy()), expected, atol=1e-4)  # float32 angles of hundreds of radians


def test_a_chip_of_integers_alone_is_refused_first(request_of: BuildRequest) -> None:
    with pytest.raises(UnsupportedError, match="transformer: expected a U-Net, as targets of integers alone need, found a transformer"):
        build(replace(request_of, target="qnn-htp", precision="w8a16"))
