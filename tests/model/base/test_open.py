"""A model directory opens as a frozen base, or is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.model.base.open import open_model, text_module, vae_decoder_module, vae_encoder_module
from quad.model.slots.attention import add_sites


@pytest.fixture
def broken(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model directory for the test to break."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def test_a_plain_directory_opens_with_defaults(model_dir: Path) -> None:
    base = open_model(model_dir)
    assert base.picture_size.width == 8 * base.latent.factor == 32
    assert base.latent.scale == (1.0,) * 4
    assert base.latent.shift == (0.0,) * 4
    assert (base.text.length, base.text.pad_id, base.text.hidden) == (8, 0, 16)
    assert (base.schedule.beta_schedule, base.schedule.prediction, base.schedule.rescale_zero_snr) == (
        "squaredcos_cap_v2",
        "v_prediction",
        True,
    )
    assert set(base.tasks) == {"text-to-image", "transform", "removal", "sketch", "inpainting"}
    for module in (base.unet, base.text_encoder, base.vae):
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())


def test_the_world_file_rules(broken: Path) -> None:
    task = TaskSpec(adapter="ink", sampler=SamplerSpec(kind="lcm", steps=4), condition="image", mask="zeros")
    world = {"latent_scale": [2, 3, 4, 5], "latent_shift": [0.1, 0, 0, 0], "size": 48, "tasks": {"transform": msgspec.to_builtins(task)}}
    (broken / "toyland.json").write_text(json.dumps(world))
    base = open_model(broken)
    assert base.latent.scale == (2.0, 3.0, 4.0, 5.0)
    assert base.picture_size == (48, 48)
    assert base.tasks == {"transform": task}
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        latent = vae_encoder_module(base)(image)
        raw = (base.vae.encode(image).latents - torch.tensor(base.latent.shift).view(1, 4, 1, 1)) * torch.tensor(base.latent.scale).view(
            1, 4, 1, 1
        )
        torch.testing.assert_close(latent, raw)
        torch.testing.assert_close(vae_decoder_module(base)(latent), base.vae.decode(base.vae.encode(image).latents).sample)


@pytest.mark.parametrize("part", [text_module, vae_encoder_module, vae_decoder_module])
def test_parts_take_sites_without_touching_the_base(part: Callable[..., nn.Module], model_dir: Path) -> None:
    base = open_model(model_dir)
    x: dict[object, Tensor] = {
        text_module: torch.tensor([[1, 3, 3, 2, 0, 0, 0, 0]]),
        vae_encoder_module: torch.randn(1, 3, 32, 32),
        vae_decoder_module: torch.randn(1, 4, 8, 8),
    }
    module = part(base)
    with torch.no_grad():
        plain = module(x[part])
        sites = add_sites(module)
        torch.testing.assert_close(module(x[part]), plain, rtol=1e-5, atol=1e-5)
        assert torch.equal(part(base)(x[part]), plain)
    layers = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in part(base).modules())
    assert sum(name.endswith(".in") for name in sites) == layers


def test_text_is_causal_with_sites(model_dir: Path) -> None:
    module = text_module(open_model(model_dir))
    add_sites(module)
    with torch.no_grad():
        first, second = (module(torch.tensor([[1, 3, last, 2, 0, 0, 0, 0]])) for last in (3, 4))
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.equal(first[:, 2:], second[:, 2:])


def test_the_index_names_the_scheduler(broken: Path) -> None:
    own = json.loads((broken / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (broken / "toyland.json").unlink(missing_ok=True)
    (broken / "model_index.json").write_text(json.dumps(index))
    base = open_model(broken)
    assert {spec.sampler.kind for spec in base.tasks.values()} == {"lcm"}
    assert base.notes == (f"scheduler: LCMScheduler, as model_index.json says; scheduler_config.json says {own}",)
    for scheduler in (["diffusers", own], None, ["diffusers", None], "?"):
        (broken / "model_index.json").write_text(json.dumps({**index, "scheduler": scheduler}))
        assert open_model(broken).notes == ()


def test_a_model_in_a_subfolder_of_a_cached_repository(model_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    copied = shutil.copytree(model_dir, repository / "snapshots" / "0123" / "sd" / "diffusers")
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in copied.rglob("*") if path.is_file())):
        blob = file.rename(repository / "blobs" / f"{number}")
        file.symlink_to(os.path.relpath(blob, file.parent))
    assert open_model(copied).digest == open_model(model_dir).digest
    (copied / "unet" / "config.json").unlink()
    (copied / "unet" / "config.json").symlink_to(model_dir / "unet" / "config.json")
    refused(InputError, "config.json: expected a file of the model's directory, found a link out of it", copied)


def test_half_precision_weights_open_as_float32(broken: Path) -> None:
    base = open_model(broken)
    for file in (broken / "unet").glob("*.safetensors"):
        file.unlink()
    base.unet.half().save_pretrained(broken / "unet", variant="fp16")
    opened = open_model(broken)
    assert next(opened.unet.parameters()).dtype == torch.float32
    assert opened.digest != base.digest


def test_digest_is_of_the_weights_alone(broken: Path) -> None:
    before = open_model(broken).digest
    (broken / "README.md").write_text("hello")
    assert open_model(broken).digest == before


def test_one_model_has_one_digest_however_it_is_stored(broken: Path) -> None:
    base = open_model(broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.double() for name, value in load_file(weights).items()}, weights)
    assert open_model(broken).digest == base.digest
    weights.unlink()
    base.unet.save_pretrained(broken / "unet", max_shard_size="40KB")
    assert open_model(broken).digest == base.digest
    parameter = next(base.unet.parameters())
    parameter.data.view(-1)[0] += 1
    base.unet.save_pretrained(broken / "unet", max_shard_size="40KB")
    assert open_model(broken).digest != base.digest


def test_bundles_before_0_2_know_their_model(model_dir: Path) -> None:
    base = open_model(model_dir)
    files = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    former = digest({f"{name}.safetensors": file_digest(model_dir / f"{name}.safetensors") for name in files})
    assert base.digest_as(former) == former != base.digest
    assert base.digest_as(base.digest) == base.digest
    assert base.digest_as("0" * 64) == base.digest


def refused(error: type[QuadError], text: str, directory: Path) -> None:
    with pytest.raises(error) as caught:
        open_model(directory)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("folder", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_missing_pickled_and_truncated_weights(folder: str, file: str, broken: Path) -> None:
    weights = broken / folder / f"{file}.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refused(InputError, f"{weights}: expected a whole safetensors file, found", broken)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    refused(InputError, f"{weights}: expected a whole safetensors file, found a git-lfs pointer in place of the file", broken)
    weights.unlink()
    refused(InputError, f"{broken / folder}: expected {file}.safetensors, found no weights; fetch the model whole", broken)
    (broken / folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(InputError, f"pytorch_model.bin: expected {file}.safetensors, found a pickled file, which can run code", broken)


@pytest.mark.parametrize(
    ("folder", "file"), [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")]
)
def test_weights_that_are_not_all_of_the_config(folder: str, file: str, broken: Path) -> None:
    weights = broken / folder / f"{file}.safetensors"
    tensors = load_file(weights)
    name = next(key for key in tensors if key.endswith(".bias"))
    save_file({key: value for key, value in tensors.items() if key != name}, weights, {"format": "pt"})
    refused(InputError, f"{weights}: expected exactly the weights of config.json, found no ", broken)
    save_file({**tensors, "blocks.77.weight": torch.ones(2)}, weights, {"format": "pt"})
    if folder != "text_encoder":
        refused(InputError, f"{weights}: expected exactly the weights of config.json, found also blocks.77.weight", broken)


SURPLUS = {
    "a layer more than the config has": {
        f"text_model.encoder.layers.9.{name}": torch.ones(2) for name in ("mlp.fc1.weight", "mlp.fc1.bias")
    },
    "a projection": {"text_projection.weight": torch.ones(16, 16), "logit_scale": torch.tensor(2.0)},
    "the other half of CLIP": {"vision_model.embeddings.class_embedding": torch.ones(8), "visual_projection.weight": torch.ones(8, 8)},
    "constants as floats": {"text_model.embeddings.position_ids": torch.arange(8).half()[None]},
    "what EMA counts": {"num_updates": torch.tensor(3), "decay": torch.tensor([0.9])},
}


@pytest.mark.parametrize("surplus", SURPLUS)
def test_a_text_encoder_s_other_tensors_are_passed_over_with_a_note(surplus: str, broken: Path) -> None:
    before = open_model(broken)
    weights = broken / "text_encoder" / "model.safetensors"
    save_file({**load_file(weights), **SURPLUS[surplus]}, weights, {"format": "pt"})
    base = open_model(broken)
    expected, opened = before.text_encoder.state_dict(), base.text_encoder.state_dict()
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name], value) for name, value in expected.items())
    names = sorted(name for name in SURPLUS[surplus] if not name.endswith("position_ids"))
    note = f"text_encoder: its config has no place for {len(names)} stored tensors, passed over: {', '.join(names)}"
    assert base.notes == ((note,) if names else ())


@pytest.mark.parametrize("folder", ["unet", "vae"])
def test_counters_beside_other_weights_are_passed_over_with_a_note(folder: str, broken: Path) -> None:
    weights = broken / folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(weights), **SURPLUS["what EMA counts"]}, weights, {"format": "pt"})
    note = f"{folder}: its config has no place for 2 stored tensors, passed over: decay, num_updates"
    assert open_model(broken).notes == (note,)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_8_bits_are_the_numbers_that_they_say(dtype: torch.dtype, broken: Path) -> None:
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    rounded = {name: value.to(dtype) for name, value in load_file(weights).items()}
    save_file(rounded, weights, {"format": "pt"})
    base = open_model(broken)
    opened = base.unet.state_dict()
    assert all(torch.equal(opened[name], value.float()) for name, value in rounded.items())
    assert [note.partition(" tensors")[0] for note in base.notes] == [f"unet: {len(rounded)} of {len(rounded)}"]


PIPELINE = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.mark.parametrize(("folder", "field"), [("text_encoder", "architectures"), ("vae", "_class_name"), ("unet", "_class_name")])
def test_a_config_without_a_class_has_the_pipeline_s(folder: str, field: str, broken: Path) -> None:
    before = open_model(broken)
    config = json.loads((broken / folder / "config.json").read_text())
    del config[field]
    (broken / folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="no class at all"):
        open_model(broken)
    index = {"_class_name": "StableDiffusionPipeline", **PIPELINE, "vae": ["diffusers", type(before.vae).__name__]}
    (broken / "model_index.json").write_text(json.dumps(index))
    after = open_model(broken)
    for network, same in ((before.unet, after.unet), (before.vae, after.vae), (before.text_encoder, after.text_encoder)):
        assert type(same) is type(network)


def _nan(file: Path) -> None:
    tensors = load_file(file)
    save_file({key: value * torch.nan for key, value in tensors.items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda root: shutil.rmtree(root / "tokenizer"), "expected tokenizer.json, or vocab.json"),
        (lambda root: (root / "vae" / "config.json").unlink(), "config.json: expected a file of a diffusers model"),
        (lambda root: os.truncate(root / "vae" / "diffusion_pytorch_model.safetensors", 4000), "expected a whole safetensors file"),
        (lambda root: edit(root / "text_encoder" / "config.json", hidden_size=24), "expected weights that fit config.json"),
        (lambda root: (root / "scheduler" / "scheduler_config.json").write_text("{"), "scheduler_config.json: expected JSON"),
        (lambda root: (root / "toyland.json").write_text('{"size": 7}'), "expected a size up to"),
    ],
)
def test_small_files_and_headers_come_before_weights(fault: Callable[[Path], object], says: str, broken: Path) -> None:
    _nan(broken / "unet" / "diffusion_pytorch_model.safetensors")
    refused(InputError, "NaN or infinity", broken)
    fault(broken)
    refused(InputError, says, broken)


def test_weights_of_another_config(broken: Path) -> None:
    edit(broken / "unet" / "config.json", cross_attention_dim=24)
    refused(InputError, f"{broken / 'unet'}: expected weights that fit config.json", broken)


def test_things_that_are_no_model(broken: Path) -> None:
    refused(InputError, "expected a diffusers model directory, or a .safetensors checkpoint, found none", broken / "nothing")
    (broken / "unet" / "config.json").unlink()
    refused(InputError, "config.json: expected a file of a diffusers model, found no such file", broken)
    (broken / "unet" / "config.json").write_text("{")
    refused(InputError, "config.json: expected JSON", broken)


@pytest.mark.parametrize(
    ("file", "changes", "text"),
    [
        ("unet/config.json", {"_class_name": "FluxTransformer2DModel"}, "expected UNet2DConditionModel, found FluxTransformer2DModel"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "expected a schedule quad knows, found Invalid enum value 'flow'"),
        ("scheduler/scheduler_config.json", {"_class_name": "DEISMultistepScheduler"}, "--sampler"),
    ],
)
def test_models_quad_does_not_know(file: str, changes: dict[str, object], text: str, broken: Path) -> None:
    edit(broken / file, **changes)
    refused(UnsupportedError, text, broken)


def test_tokenizer_and_world_files(broken: Path) -> None:
    (broken / "toyland.json").write_text(json.dumps({"latent_scale": [1, 2]}))
    refused(InputError, "toyland.json: expected 4 latent scales (not 0) and shifts, found 2 and 4", broken)
    (broken / "toyland.json").write_text(json.dumps({"tasks": {"x": {"adapter": 3}}}))
    refused(InputError, "toyland.json: expected latent_scale, latent_shift, size, tasks, found", broken)
    (broken / "toyland.json").unlink()
    tokenizer = broken / "tokenizer" / "tokenizer.json"
    tokenizer.write_text("{}")
    refused(InputError, f"{tokenizer}: expected a tokenizer, found", broken)
    tokenizer.unlink()
    refused(InputError, "expected tokenizer.json, or vocab.json and merges.txt, found none; fetch the model whole", broken)
