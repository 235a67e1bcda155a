"""SDXL opened: diffusers' own hidden states, pooled prompt and noise; from a directory or one file; its refiner and EDM refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quad.core.errors import InputError, UnsupportedError, UsageError
from quad.core.families import EDITING, INPAINTING
from quad.core.manifest import TextSpec
from quad.lora.embeddings import read_embeddings
from quad.model.base.open import Base, BaseOptions, open_model, text_module, vae_decoder_module, vae_encoder_module
from quad.model.base.text.clip_skip import with_clip_skip
from quad.model.base.text.prompt_chunks import with_prompt_chunks
from quad.quantize.observe.torch_session import TorchSession
from quad.runtime.conditioning.embeddings import WordVectors
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.size_conditions import SizeConditions, with_sizes
from quad.runtime.conditioning.text_features import filled_up, text_features
from quad.runtime.conditioning.tokenizer import Tokenizer
from tests.checkpoints import original_vae, save_checkpoint
from tests.stable_diffusion_xl import LENGTH, POOLED, TIME_CHANNELS, WIDTHS, one_file_parts, original_tensors, save_xl, unet

PROMPTS = ("a photo of the red cat", "", "a painting of a horse " * 30)
SIZES = (64, 48, 3, 5, 32, 96)
TIME = torch.tensor([437.0])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def base(directory: Path) -> Base:
    return open_model(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(directory, local_files_only=True, add_watermarker=False)


@pytest.fixture
def copied(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "model"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def features(base: Base, prompt: str) -> Tensor:
    ids = torch.from_numpy(Tokenizer(base.tokenizer, base.text)(prompt).ids)
    with torch.no_grad():
        rows: Tensor = base.text_encoder(ids).last_hidden_state
    return rows


def their_noise(pipe: Any, sample: Tensor, states: Tensor, pooled: Tensor, sizes: tuple[int, ...] = SIZES) -> Tensor:
    conditions = {"text_embeds": pooled, "time_ids": torch.tensor([sizes], dtype=torch.float32)}
    with torch.no_grad():
        noise: Tensor = pipe.unet(sample, TIME, states, added_cond_kwargs=conditions).sample
    return noise


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.square().mean().sqrt())


def test_what_is_opened(base: Base) -> None:
    text = base.text
    assert (text.length, text.hidden, text.pooled, text.clip_skip, text.zeros_for_empty) == (LENGTH, sum(WIDTHS), POOLED, 2, True)
    assert not isinstance(text.sizes, msgspec.UnsetType)
    assert (text.sizes.channels, text.rows) == (TIME_CHANNELS, LENGTH + 1 + 2)
    assert base.latent.scale == (0.13025,) * 4
    assert set(base.tasks) == {"text-to-image", "transform", "removal", "sketch", "inpainting"}
    assert {(spec.guidance, spec.sampler.kind) for spec in base.tasks.values()} == {(5.0, "euler")}
    assert base.notes == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hidden_states_pooled_prompt_and_noise_are_those_of_diffusers(base: Base, theirs: Any) -> None:
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for prompt in PROMPTS:
        with torch.no_grad():
            states, _, pooled, _ = theirs.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        rows = features(base, prompt)
        torch.testing.assert_close(rows[:, :LENGTH], states, rtol=0, atol=0)
        assert error(rows[:, LENGTH:].flatten(1)[:, :POOLED], pooled) < 1e-5
        told = torch.from_numpy(with_sizes(base.text, rows.numpy(), SIZES))
        with torch.no_grad():
            ours = base.unet(sample, TIME, told).sample
        assert error(ours, their_noise(theirs, sample, states, pooled)) < 1e-4
    assert error(their_noise(theirs, sample, states, pooled, (64,) * 6), ours) > 0.01  # sizes count,
    assert error(their_noise(theirs, sample, states, 0 * pooled), ours) > 0.05  # and the prompt as a whole


def test_clip_skip_counts_from_the_last_layer_but_one(base: Base, theirs: Any) -> None:
    assert with_clip_skip(base, 1) is base
    assert with_clip_skip(base, 2) is base
    shorter = with_clip_skip(base, 3)
    with torch.no_grad():
        states, _, pooled, _ = theirs.encode_prompt(PROMPTS[0], device="cpu", do_classifier_free_guidance=False, clip_skip=1)
    rows = features(shorter, PROMPTS[0])
    torch.testing.assert_close(rows[:, :LENGTH], states, rtol=0, atol=0)
    assert error(rows[:, LENGTH:].flatten(1)[:, :POOLED], pooled) < 1e-5
    assert shorter.text.skipped_layers == 2
    with pytest.raises(UsageError, match="--clip-skip: expected 1 to 3, 1 and 2 as the model was trained, found 4"):
        with_clip_skip(base, 4)


def test_a_context_of_several_chunks_reads_a_short_prompt_the_same(base: Base) -> None:
    longer, sample = with_prompt_chunks(base, 2), torch.ones(1, 4, 8, 8)
    rows = features(base, PROMPTS[0]).numpy()
    padded = torch.cat([torch.from_numpy(filled_up(rows[:, :LENGTH], 2 * LENGTH)), torch.from_numpy(rows[:, LENGTH:])], dim=1)
    with torch.no_grad():
        expected = base.unet(sample, TIME, torch.from_numpy(with_sizes(base.text, rows, SIZES))).sample
        ours = longer.unet(sample, TIME, torch.from_numpy(with_sizes(longer.text, padded.numpy(), SIZES))).sample
    assert longer.text.rows == 2 * LENGTH + 3
    assert error(ours, expected) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_latents_with_a_mean_and_a_spread_of_each_channel_are_decoded_as_by_diffusers(copied: Path) -> None:
    mean, spread = [0.4, -0.3, 0.2, -1.1], [0.9, 1.2, 0.7, 1.6]
    edit(copied / "vae" / "config.json", latents_mean=mean, latents_std=spread)
    ours = open_model(copied)
    assert ours.latent.shift == tuple(mean)
    pipe: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(copied, local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    call = {"prompt": "a cat", "latents": noise, "num_inference_steps": 1, "height": 64, "width": 64}
    latents, picture = (torch.as_tensor(pipe(**call, output_type=kind).images) for kind in ("latent", "pt"))
    with torch.no_grad():
        decoded = (vae_decoder_module(ours)(latents) / 2 + 0.5).clamp(0, 1)
        back = vae_encoder_module(ours)(2 * picture - 1)
        posterior = pipe.vae.encode(2 * picture - 1).latent_dist.mean
    assert error(decoded, picture) < 1e-5
    scaled = (posterior - torch.tensor(mean).view(1, -1, 1, 1)) * 0.13025 / torch.tensor(spread).view(1, -1, 1, 1)  # as its image-to-image
    assert error(back, scaled) < 1e-5
    edit(copied / "vae" / "config.json", latents_std=[1.0, 2.0])
    with pytest.raises(InputError, match="4 numbers each as latents_mean and latents_std, the latter above 0"):
        open_model(copied)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_textual_inversion_of_both_encoders_is_read_as_by_diffusers(base: Base, directory: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    vectors = {name: torch.randn(2, width, generator=draw) for name, width in zip(("clip_l", "clip_g"), WIDTHS, strict=True)}
    save_file(vectors, tmp_path / "toy.safetensors")
    words, prompt = WordVectors(read_embeddings(tmp_path / "toy.safetensors")), "a photo of toy, red"
    network = text_module(base)
    session = TorchSession(network, {"input_ids": (1, LENGTH), "embeddings": (1, LENGTH, sum(WIDTHS))})
    rows = text_features(session, read_prompt(Tokenizer(base.tokenizer, base.text), prompt, words=words), base.text)
    pipe: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(directory, local_files_only=True, add_watermarker=False)
    for name, encoder, tokenizer in (("clip_l", "text_encoder", "tokenizer"), ("clip_g", "text_encoder_2", "tokenizer_2")):
        places = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
        pipe.load_textual_inversion(vectors[name], token="toy", **places)
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    assert error(torch.from_numpy(rows[:, :LENGTH]), states) < 1e-5
    assert error(torch.from_numpy(rows[:, LENGTH:]).flatten(1)[:, :POOLED], pooled) < 1e-5
    plain = text_features(session, read_prompt(Tokenizer(base.tokenizer, base.text), prompt), base.text)
    assert np.abs(plain - rows).max() > 0.1  # the word counts


def test_a_vae_that_half_precision_holds_says_so(copied: Path) -> None:
    assert open_model(copied).vae_overflows
    edit(copied / "vae" / "config.json", force_upcast=False)
    assert not open_model(copied).vae_overflows


def test_an_empty_prompt_may_be_words(copied: Path) -> None:
    edit(copied / "model_index.json", force_zeros_for_empty_prompt=False)
    assert open_model(copied).text.zeros_for_empty is msgspec.UNSET


def test_a_text_of_a_bundle_before_sdxl_is_read_as_it_was() -> None:
    old = msgspec.json.decode(b'{"length": 77, "pad_id": 1, "hidden": 16}', type=TextSpec)
    assert (old.rows, old.pooled_rows, old.size_rows) == (77, 0, 0)
    assert msgspec.json.encode(old) == b'{"length":77,"pad_id":1,"hidden":16}'


@pytest.mark.parametrize(("channels", "beside"), [(8, EDITING), (9, INPAINTING)])
def test_its_other_layouts(channels: int, beside: object, copied: Path) -> None:
    unet(channels).save_pretrained(copied / "unet")
    assert open_model(copied).latent.beside == beside


@pytest.mark.parametrize(
    "changes",
    [
        {"transformer_layers_per_block": [1, [2]], "reverse_transformer_layers_per_block": [[2, 1], 1]},
        {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1]},
    ],
    ids=["SSD-1B", "Vega"],
)
def test_depths_are_those_of_the_config(changes: dict[str, Any], copied: Path) -> None:
    unet(**changes).save_pretrained(copied / "unet")
    base, reference = open_model(copied), diffusers.UNet2DConditionModel.from_pretrained(copied / "unet")
    rows, sample = torch.randn(1, base.text.rows, base.text.hidden), torch.ones(1, 4, 8, 8)
    numbers = rows[:, LENGTH:].flatten(1)
    conditions = torch.cat([numbers[:, :POOLED], numbers[:, sum(WIDTHS) :][:, : 6 * TIME_CHANNELS]], dim=1)
    reference.get_aug_embed = lambda emb, **_: reference.add_embedding(conditions)
    with torch.no_grad():
        torch.testing.assert_close(base.unet(sample, TIME, rows).sample, reference(sample, TIME, rows[:, :LENGTH]).sample)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 2560},
            "input_dim=2560 (the refiner has 2560)",
        ),
        (
            "unet/config.json",
            {"class_embed_type": "timestep"},
            "text and sizes alone, found class_embed_type='timestep'",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "found EDMEulerScheduler"),
        ("model_index.json", {"_class_name": "StableDiffusionXLControlNetPipeline"}, "found StableDiffusionXLControlNetPipeline (SDXL)"),
    ],
)
def test_what_is_no_base_of_it_is_refused(file: str, changes: dict[str, object], says: str, copied: Path) -> None:
    edit(copied / file, **changes)
    if file.startswith("scheduler"):
        edit(copied / "model_index.json", scheduler=["diffusers", changes["_class_name"]])
    with pytest.raises(UnsupportedError) as caught:
        open_model(copied)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_of_two_models_are_refused(copied: Path) -> None:
    unet(projection_class_embeddings_input_dim=POOLED + 2 + 6 * TIME_CHANNELS).save_pretrained(copied / "unet")
    with pytest.raises(InputError, match=r"text_encoder_2: expected 22 numbers of a prompt as a whole .*, found 20"):
        open_model(copied)
    shutil.rmtree(copied / "tokenizer_2")
    shutil.copytree(copied / "tokenizer", copied / "tokenizer_2")
    vocabulary = json.loads((copied / "tokenizer_2" / "vocab.json").read_text())
    first, second = list(vocabulary)[:2]
    changed = {**vocabulary, first: vocabulary[second], second: vocabulary[first]}
    (copied / "tokenizer_2" / "vocab.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="tokenizer_2: expected two tokenizers of the same tokens, 77 of a prompt"):
        open_model(copied)


@pytest.mark.parametrize(
    ("channels", "extra", "schedule"),
    [
        (4, {}, ("epsilon", False)),
        (9, {}, ("epsilon", False)),
        (4, {"v_pred": torch.zeros(0)}, ("v_prediction", False)),
        (4, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, ("v_prediction", True)),
    ],
)
def test_one_file_is_the_same_model(channels: int, extra: dict[str, Tensor], schedule: tuple[str, bool], tmp_path: Path) -> None:
    parts = one_file_parts(channels)
    base: Any = open_model(save_checkpoint({**original_tensors(parts), **extra}, tmp_path / "ink.safetensors"))
    assert (base.schedule.prediction, base.schedule.rescale_zero_snr) == schedule
    assert (base.text.hidden, base.text.pooled, base.text.zeros_for_empty, base.latent.scale[0]) == (192, 128, True, 0.13025)
    assert (base.picture_size.width, base.latent.beside) == (256, msgspec.UNSET if channels == 4 else INPAINTING)
    networks = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder.clip_l, "text_encoder_2": base.text_encoder.clip_g}
    for name, network in networks.items():
        state, expected = network.state_dict(), parts[name].state_dict()
        assert name == "text_encoder" or state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state), name
    config, reference = base.unet.config, parts["unet"].config
    for field in ("down_block_types", "up_block_types", "mid_block_type", "attention_head_dim", "use_linear_projection"):
        assert config[field] == reference[field] or list(config[field]) == list(reference[field])
    assert base.text_encoder.pads == (49407, 0)


def test_the_refiner_in_one_file_is_refused_by_name(tmp_path: Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight")
    tensors = {name: torch.ones(4, 4, 3, 3) for name in names}
    with pytest.raises(UnsupportedError, match="found the SDXL refiner"):
        open_model(save_checkpoint(tensors, tmp_path / "refiner.safetensors"))


def test_an_autoencoder_in_original_names_has_its_scaling(copied: Path, tmp_path: Path) -> None:
    file = save_checkpoint(original_vae(one_file_parts()["vae"]), tmp_path / "vae.safetensors")
    assert open_model(copied, BaseOptions(vae=file)).latent.scale == (0.13025,) * 4


def test_sizes_by_default_are_the_pictures_own(base: Base) -> None:
    assert SizeConditions().numbers(base.picture_size) == (64, 64, 0, 0, 64, 64)
    assert SizeConditions(target_size=(8, 16)).numbers(base.picture_size, negative=True) == (64, 64, 0, 0, 8, 16)
