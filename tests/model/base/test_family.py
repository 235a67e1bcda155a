"""A directory's family is told from its configs, and a model that quad cannot run is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from quad.core.errors import InputError, QuadError, UnsupportedError, UsageError
from quad.core.families import EDITING, INPAINTING, SUPPORTED
from quad.model.base.open import BaseOptions, open_model


@pytest.fixture
def plain(model_dir: Path, tmp_path: Path) -> Path:
    """A model directory to change; its U-Net has 9 channels, as inpainting models have."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def _with_channels(root: Path, channels: int) -> Path:
    torch.manual_seed(0)
    shutil.rmtree(root / "unet")
    UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
    ).save_pretrained(root / "unet")  # fmt: skip
    return root


def _edit(path: Path, **changes: object) -> None:
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **changes}))


def _refused(root: Path, says: str, error: type[QuadError] = UnsupportedError, options: BaseOptions | None = None) -> None:
    with pytest.raises(error) as caught:
        open_model(root, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


DRAWING = {"text-to-image", "transform", "removal", "sketch", "inpainting"}


@pytest.mark.parametrize(
    ("channels", "beside", "tasks"),
    [
        (4, msgspec.UNSET, DRAWING),
        (8, EDITING, DRAWING - {"text-to-image"}),
        (9, INPAINTING, DRAWING),
    ],
)
def test_layouts_and_their_tasks(channels: int, beside: object, tasks: set[str], plain: Path) -> None:
    base = open_model(_with_channels(plain, channels))
    assert base.latent.beside == beside
    assert set(base.tasks) == tasks
    assert {spec.adapter for spec in base.tasks.values()} == {None}
    assert base.tasks["removal"].mask == "input"
    assert base.tasks["transform"].reads_picture
    assert (base.tasks["removal"].blend is True) == (channels == 4)
    assert (base.tasks["transform"].image_guidance == 1.5) == (channels == 8)
    assert all(spec.guidance == 7.5 for spec in base.tasks.values())


def test_the_reference_worlds_nine_channels_are_its_own(plain: Path) -> None:
    task = {"adapter": None, "sampler": {"kind": "ddim", "steps": 2}, "condition": "none", "mask": "ones"}
    (plain / "toyland.json").write_text(json.dumps({"size": 32, "tasks": {"text-to-image": task}}))
    base = open_model(plain)
    assert base.latent.beside is msgspec.UNSET
    assert set(base.tasks) == {"text-to-image"}


@pytest.mark.parametrize("channels", [5, 7])
def test_other_channels_are_refused(channels: int, plain: Path) -> None:
    says = f"expected 4, 8 (InstructPix2Pix) or 9 (inpainting) input channels, found in_channels={channels}"
    _refused(_with_channels(plain, channels), says)


def test_adapters_named_like_tasks_are_theirs(plain: Path) -> None:
    names = ("sketch", "sticker", "portrait", "ink")
    base = open_model(_with_channels(plain, 4), BaseOptions(adapters=names))
    adapter_of = {task: spec.adapter for task, spec in base.tasks.items() if spec.adapter}
    assert adapter_of == {"sketch": "sketch", "sticker": "sticker", "portrait": "portrait"}
    assert not base.tasks["sticker"].reads_picture
    assert base.tasks["portrait"].reads_picture


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("StableDiffusionXLAdapterPipeline", "found StableDiffusionXLAdapterPipeline (SDXL)"),
        ("StableDiffusion3Pipeline", "found StableDiffusion3Pipeline (Stable Diffusion 3)"),
        ("FluxPipeline", "found FluxPipeline (Flux)"),
        ("PixArtSigmaPipeline", "found PixArtSigmaPipeline (PixArt)"),
        ("StableDiffusionUpscalePipeline", "found StableDiffusionUpscalePipeline"),
        ("MarigoldDepthPipeline", "found MarigoldDepthPipeline"),
    ],
)
def test_other_pipelines_are_refused_by_name(kind: str, says: str, plain: Path) -> None:
    _edit(plain / "model_index.json", _class_name=kind)
    _refused(plain, f"model_index.json: expected {SUPPORTED}, {says}; choose such a model")


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline"])
def test_pipelines_of_the_family_open(kind: str, plain: Path) -> None:
    _edit(plain / "model_index.json", _class_name=kind)
    assert open_model(plain).picture_size == (32, 32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"addition_embed_type": "image"}, "expected a U-Net conditioned on text alone, found addition_embed_type='image'"),
        ({"class_embed_type": "timestep"}, "expected a U-Net conditioned on text alone, found class_embed_type='timestep'"),
        ({"time_cond_proj_dim": 256}, "found time_cond_proj_dim=256"),
        ({"down_block_types": ["KDownBlock2D"]}, "expected down_block_types of DownBlock2D, CrossAttnDownBlock2D, found KDownBlock2D"),
    ],
)
def test_other_unets_are_refused_by_what_they_have(changes: dict[str, object], says: str, plain: Path) -> None:
    _edit(plain / "unet" / "config.json", **changes)
    _refused(plain, says)


def test_a_transformer_is_refused_by_name(plain: Path) -> None:
    shutil.rmtree(plain / "unet")
    _edit(plain / "transformer" / "config.json", _class_name="SD3Transformer2DModel")
    _refused(
        plain,
        f"expected {SUPPORTED}, found SD3Transformer2DModel (Stable Diffusion 3)",
    )


def test_a_text_encoder_of_another_model_is_refused(plain: Path) -> None:
    shutil.rmtree(plain / "unet")
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
        attention_head_dim=4,
    )  # fmt: skip
    unet.save_pretrained(plain / "unet")
    _refused(plain, "text_encoder: expected 24 numbers per token (cross_attention_dim), found 16", InputError)


def test_size_and_sampler_are_chosen_when_it_is_opened(plain: Path) -> None:
    base = open_model(plain, BaseOptions(size=128, sampler="euler:7"))
    assert base.picture_size == (128, 128)
    assert {(spec.sampler.kind, spec.sampler.steps) for spec in base.tasks.values()} == {("euler", 7)}
    assert open_model(plain).tasks["transform"].sampler.kind == "ddim"
    assert open_model(plain, BaseOptions(size="128x64")).picture_size == (128, 64)
    for size in (0, 100, "128x100"):
        says = f"--size: expected multiples of 64 pixels up to 8192, found {size!r}; choose others"
        _refused(plain, says, UsageError, BaseOptions(size=size))
    for size in (-64, "64x", "64x64x64", "64 64", ""):
        _refused(plain, f"--size: expected WIDTHxHEIGHT or N, in pixels, found {size!r}", UsageError, BaseOptions(size=size))
    _refused(plain, "found 'abacus'", UsageError, BaseOptions(sampler="abacus"))


@pytest.mark.parametrize(("steps", "strengths"), [(1, [1.0, 1.0, 1.0]), (2, [0.8, 0.9, 0.6])])
def test_a_task_that_begins_at_a_picture_has_a_step_to_take(steps: int, strengths: list[float], plain: Path) -> None:
    tasks = open_model(_with_channels(plain, 4), BaseOptions(sampler=f"euler:{steps}", adapters=["portrait"])).tasks
    assert [tasks[task].strength for task in ("transform", "sketch", "portrait")] == strengths


def test_a_consistency_sampler_is_not_guided(plain: Path) -> None:
    assert {spec.guidance for spec in open_model(plain, BaseOptions(sampler="lcm:4")).tasks.values()} == {1.0}


def test_an_unknown_scheduler_opens_with_another_sampler(plain: Path) -> None:
    file = plain / "scheduler" / "scheduler_config.json"
    _edit(file, _class_name="DEISMultistepScheduler")
    _refused(plain, "DEISMultistepScheduler")
    before = open_model(plain, BaseOptions(sampler="ddim:3"))
    assert before.tasks["text-to-image"].sampler.steps == 3
    shutil.rmtree(plain / "scheduler")
    DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True).save_pretrained(
        plain / "scheduler"
    )
    assert open_model(plain).schedule == before.schedule


@pytest.mark.parametrize(("version", "size"), [("0.6.0.dev0", 256), ("0.8.1", 256), ("0.9.0.dev0", 32), ("0.10.2", 32), ("0.42.1", 32)])
def test_the_first_configs_mean_another_side_than_they_say(version: str, size: int, plain: Path) -> None:
    # The autoencoder here has 4 pixels for one of its latents; diffusers' pipelines read any side under 64 of those years as 64.
    _edit(plain / "unet" / "config.json", _diffusers_version=version)
    assert open_model(plain).picture_size == (size, size)


def test_a_model_may_be_trained_on_pictures_that_are_no_squares(plain: Path) -> None:
    _edit(plain / "unet" / "config.json", sample_size=[8, 12])  # rows first, as diffusers has them
    assert open_model(plain).picture_size == (48, 32)
    _edit(plain / "unet" / "config.json", sample_size=[8, 12, 3])
    _refused(plain, "unet: expected one number, or height and width, as sample_size, found")
    assert open_model(plain, BaseOptions(size=64)).picture_size == (64, 64)
