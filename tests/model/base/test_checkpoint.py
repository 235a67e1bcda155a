"""A one-file checkpoint is the model of the diffusers directory with the same weights, tensor by tensor; others are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from quad.core.errors import InputError, QuadError, UnsupportedError, UsageError
from quad.model.base.checkpoint.clip_vocabulary import clip_vocabulary
from quad.model.base.default_tasks import tasks_of
from quad.model.base.open import Base, BaseOptions, open_model
from tests.checkpoints import Small, original_vae, save_checkpoint, save_directory, small

UNET = "model.diffusion_model."
FAMILIES: dict[str, Callable[[], Small]] = {
    "1.x": small,
    "1.x in float16": lambda: small(dtype=torch.float16),
    "1.x in bfloat16": lambda: small(dtype=torch.bfloat16),
    "1.x inpainting": lambda: small(channels=9),
    "InstructPix2Pix": lambda: small(channels=8),
    "2.x": lambda: small(second=True),
    "2.x inpainting": lambda: small(second=True, channels=9),
    "2.x with velocity": lambda: small(second=True, velocity=True, dtype=torch.float16),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's vocabulary in files, as on the hub."""
    folder = tmp_path_factory.mktemp("clip")
    vocab, pairs = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 1.x."""
    return save_checkpoint(small().tensors(), tmp_path_factory.mktemp("plain") / "ink-v1.safetensors")


def _same(network: nn.Module, reference: nn.Module) -> None:
    state, expected = network.state_dict(), reference.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def _same_base(base: Base, reference: Base) -> None:
    for part in ("unet", "vae", "text_encoder"):
        _same(getattr(base, part), getattr(reference, part))
    for field in ("schedule", "latent", "picture_size", "tasks", "samplers", "text", "tokenizer", "digest"):
        assert getattr(base, field) == getattr(reference, field), field


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_as_the_directory(family: str, vocabulary: Path, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    metadata = {"modelspec.prediction_type": "v"} if "velocity" in family else None
    file = save_checkpoint(model.tensors(), tmp_path / "file" / "ink.safetensors", metadata)
    directory = save_directory(model, tmp_path / "directory", vocabulary)
    base, reference = open_model(file), open_model(directory)
    _same_base(base, reference)
    sample = torch.randn(1, model.unet.config.in_channels, 8, 8)
    words, time = torch.randn(1, 77, 64), torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(base.unet(sample, time, words).sample, reference.unet(sample, time, words).sample)
        ids, image = torch.randint(0, 49408, (1, 77)), torch.randn(1, 3, 16, 16)
        assert torch.equal(base.text_encoder(ids).last_hidden_state, reference.text_encoder(ids).last_hidden_state)
        assert torch.equal(base.vae.encode(image).latent_dist.mean, reference.vae.encode(image).latent_dist.mean)
    assert base.notes == (("prediction: v_prediction, as the file itself says",) if "velocity" in family else ())
    assert tasks_of(file, ["ink"]) == tasks_of(directory, ["ink"]) != {}


@pytest.mark.parametrize("second", [False, True])
def test_the_tensors_are_those_of_diffusers_conversion(second: bool, tmp_path: Path) -> None:
    tensors = small(second).tensors()
    base: Any = open_model(save_checkpoint(tensors, tmp_path / "ink.safetensors"))
    converted = {
        base.unet: convert_ldm_unet_checkpoint(dict(tensors), base.unet.config),
        base.vae: convert_ldm_vae_checkpoint(dict(tensors), base.vae.config),
    }
    if second:
        converted[base.text_encoder] = convert_open_clip_checkpoint(base.text_encoder, dict(tensors))
    for network, state in converted.items():
        names = {name: name.removeprefix("text_model.") for name in state}
        own = network.state_dict()
        assert own.keys() <= set(names.values())
        assert all(torch.equal(own[short], state[name]) for name, short in names.items() if short in own)


def test_clip_s_own_ids(plain: Path) -> None:
    tokenizer = Tokenizer.from_str(open_model(plain).tokenizer)
    # As openai/CLIP gives them.
    astronaut = [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    assert tokenizer.encode("a photo of  an Astronaut riding a horse on mars").ids == astronaut
    assert tokenizer.encode("a cat, a dog").ids == [49406, 320, 2368, 267, 320, 1929, 49407]
    assert tokenizer.get_vocab_size() == 49408


@pytest.mark.parametrize(("second", "pad"), [(False, 49407), (True, 0)])
def test_what_fills_a_prompt_up(second: bool, pad: int, tmp_path: Path) -> None:
    assert open_model(save_checkpoint(small(second).tensors(), tmp_path / "a.safetensors")).text.pad_id == pad


def test_averages_schedules_and_others_are_passed_over(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain)
    averages = {f"model_ema.{name.removeprefix('model.').replace('.', '')}": value * 0 for name, value in tensors.items() if UNET in name}
    more = {"betas": torch.ones(3), "alphas_cumprod": torch.ones(3), "model_ema.num_updates": torch.tensor(3), "loss.w": torch.ones(2)}
    base = open_model(save_checkpoint({**tensors, **averages, **more}, tmp_path / "ink.safetensors"))
    _same(base.unet, open_model(plain).unet)
    assert base.notes == (
        "the running averages (EMA) in the checkpoint are passed over",
        "the checkpoint: 1 tensors of no part are passed over: loss.w",
    )


def test_older_spellings_of_the_text_encoder_and_of_numbers(plain: Path, tmp_path: Path) -> None:
    """Merged files leave `text_model` out, and hold a constant as floats."""
    tensors = {name.replace(".text_model.", "."): value for name, value in load_file(plain).items()}
    position_ids = next(name for name in tensors if name.endswith("position_ids"))
    tensors[position_ids] = tensors[position_ids].half()
    base = open_model(save_checkpoint(tensors, tmp_path / "ink.safetensors"))
    assert base.digest == open_model(plain).digest
    assert base.notes == ()


def _velocity(file: Path, **options: Any) -> tuple[str, int, tuple[str, ...]]:
    base = open_model(file, BaseOptions(**options))
    return base.schedule.prediction, base.picture_size.width, base.notes


def test_what_tells_velocity(tmp_path: Path) -> None:
    tensors = small(second=True).tensors()
    file = save_checkpoint(tensors, tmp_path / "sd2.safetensors")
    assert _velocity(file)[:2] == ("epsilon", 128)  # the small autoencoder halves once
    assert _velocity(file, prediction="v") == ("v_prediction", 192, ())
    (tmp_path / "sd2.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert _velocity(file) == ("v_prediction", 192, ("prediction: v_prediction, as sd2.yaml beside it says",))
    assert _velocity(file, prediction="epsilon")[0] == "epsilon"
    (tmp_path / "sd2.yaml").write_text("model:\n  params:\n    beta: 1\n")
    assert _velocity(file)[0] == "epsilon"
    marked = save_checkpoint({**tensors, "v_pred": torch.tensor(1.0)}, tmp_path / "marked.safetensors")
    assert _velocity(marked)[0] == "v_prediction"
    for model, word, says in ((file, "x", "expected epsilon or v, found 'x'"), (tmp_path, "v", "expected a one-file checkpoint as MODEL")):
        with pytest.raises(UsageError, match=says):
            open_model(model, BaseOptions(prediction=word))


def test_an_autoencoder_of_one_s_own(plain: Path, vocabulary: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    model, other = small(), small()
    for weight in other.vae.parameters():
        weight.data.add_(torch.randn_like(weight))
    without = {name: value for name, value in load_file(plain).items() if not name.startswith("first_stage_model.")}
    file = save_checkpoint(without, tmp_path / "no-vae.safetensors")
    with pytest.raises(InputError, match=r"expected an autoencoder in the checkpoint .* found none; name one: --vae FILE"):
        open_model(file)
    bare = save_checkpoint(original_vae(other.vae), tmp_path / "vae.safetensors")
    prefixed = save_checkpoint({f"first_stage_model.{k}": v for k, v in original_vae(other.vae).items()}, tmp_path / "p.safetensors")
    directory = save_directory(other, tmp_path / "directory", vocabulary)
    weights = directory / "vae" / "diffusion_pytorch_model.safetensors"
    for vae in (bare, prefixed, directory, directory / "vae", weights):
        for checkpoint in (file, plain) if vae is bare else (file,):
            base = open_model(checkpoint, BaseOptions(vae=vae))
            _same(base.vae, other.vae)
            _same(base.unet, model.unet)
    _same(open_model(directory, BaseOptions(vae=plain)).vae, model.vae)
    for place, says in ((tmp_path / "gone", "found none; check the path"), (tmp_path / "a.pt", "convert it to safetensors")):
        (tmp_path / "a.pt").write_bytes(b"x")
        with pytest.raises(InputError, match=says):
            open_model(file, BaseOptions(vae=place))


def _refused(file: Path, says: str, error: type[QuadError] = InputError) -> None:
    with pytest.raises(error) as caught:
        open_model(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ink.ckpt", "ink.pt", "ink.BIN", "ink.pth"])
def test_pickled_checkpoints(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    _refused(tmp_path / name, "expected a .safetensors checkpoint, found a pickled file, which can run code when it is opened; convert it")


@pytest.mark.parametrize(
    ("more", "family"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
        (f"{UNET}label_emb.weight", "a model with class or noise labels"),
        (f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("control_model.time_embed.0.weight", "ControlNet"),
        ("down_blocks.0.motion_modules.0.norm.weight", "AnimateDiff"),
    ],
)
def test_other_families_by_name(more: str, family: str, tmp_path: Path) -> None:
    tensors = {f"{UNET}input_blocks.0.0.weight": torch.ones(8, 4, 3, 3), more: torch.ones(2, 2)}
    _refused(save_checkpoint(tensors, tmp_path / "a.safetensors"), f"found {family}; choose such a model", UnsupportedError)


def _without(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: {"lora_unet_a.lora_down.weight": torch.ones(2, 2)}, "expected a checkpoint, found a LoRA; give it with --adapter a="),
        (lambda _: {"conv_in.weight": torch.ones(2, 2)}, "expected a Stable Diffusion checkpoint in its original names"),
        (lambda _: {}, "others, such as no tensors"),
        (lambda t: _without(t, "cond_stage_model"), "expected a text encoder in the checkpoint (cond_stage_model), found none"),
        (lambda t: _without(t, "middle_block.1.norm.bias"), "found no mid_block.attentions.0.norm.bias"),
        (lambda t: _without(t, "encoder.mid.attn_1.q.weight"), "found no encoder.mid_block.attentions.0.to_q.weight"),
        (lambda t: _without(t, "final_layer_norm"), "found no final_layer_norm.bias"),
        (lambda t: _without(t, ".op."), "expected model.diffusion_model.* laid out as in Stable Diffusion"),
        (lambda t: _without(t, "encoder.down"), "expected first_stage_model.* laid out as in Stable Diffusion"),
        (lambda t: _without(t, "token_embedding"), "expected a tensor embeddings.token_embedding.weight of two axes or more, found none"),
        (lambda t: {**t, f"{UNET}more.weight": torch.ones(2, 2)}, "found also model.diffusion_model.more.weight"),
        (lambda t: {**t, f"{UNET}out.2.bias": torch.full((4,), torch.nan)}, "NaN or infinity in model.diffusion_model.out.2.bias"),
    ],
)
def test_files_that_are_no_whole_checkpoint(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str, plain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(change(load_file(plain)), file)
    _refused(file, says)


def test_a_checkpoint_is_named_by_its_file(plain: Path) -> None:
    _refused(plain.parent, "expected the parts of a diffusers model, found a file ink-v1.safetensors; name a checkpoint by its file")
    _refused(plain.with_name("gone.safetensors"), "expected a diffusers model directory, or a .safetensors checkpoint, found none")
