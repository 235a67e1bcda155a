"""The reference model of SDXL's family: it opens as one, and each of its adapters is read whole where it should reach."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from quad.core.sampling import AdapterDefaults
from quad.evaluate.figures.reference import Reference
from quad.lora.file import defaults_of, open_lora
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model
from quad.zoo.calibration import calibration_samples
from quad.zoo.reference import reference_adapters, reference_dir
from quad.zoo.samples import with_samples
from quad.zoo.train.text import encode
from quad.zoo.train.xl.networks import xl_tokenizer

MODEL = "toyland-xl"
LARGEST = 40 * 2**20
ADAPTERS = ("portrait", "speed", "sticker", "transform")


@functools.cache
def base() -> Base:
    return open_model(reference_dir(MODEL))


def test_it_is_an_sdxl_in_small() -> None:
    assert base().text.clip_skip == 2
    assert base().text.pooled_rows == base().text.size_rows == 1
    assert base().text.zeros_for_empty is True
    assert base().picture_size == (128, 128)
    assert base().latent.factor == 8
    assert sum(file.stat().st_size for file in reference_dir(MODEL).rglob("*") if file.is_file()) < LARGEST


def test_every_task_has_samples_of_its_size_and_every_adapter_a_task() -> None:
    assert set(with_samples(base().tasks)) == set(base().tasks)
    assert {spec.adapter for spec in base().tasks.values()} == {None, *ADAPTERS}
    samples = calibration_samples(reference_dir(MODEL), ADAPTERS)
    assert {sample.truth.shape for sample in samples if sample.truth is not None} == {(128, 128, 3)}
    assert {sample.task for sample in samples} == set(base().tasks)


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_is_read_whole(name: str) -> None:
    file = reference_adapters(MODEL)[name]
    adapter = read_adapter(name, file, base().unet, text_encoder=base().text_encoder)
    assert sum(origin.tensors for origin in adapter.origins.values()) == len(open_lora(file).tensors)
    assert all(pair.power > 0 for pair in adapter.weights.values())
    in_text = {path.split(".")[1] for path in adapter.weights if path.startswith("text_encoder.")}
    assert in_text == ({"clip_l", "clip_g"} if name == "sticker" else set())


def test_the_speed_lora_reaches_convolutions_and_says_how_it_is_run() -> None:
    file = reference_adapters(MODEL)["speed"]
    assert defaults_of(file) == AdapterDefaults(sampler="lcm:4", guidance=1.0)
    paths = read_adapter("speed", file, base().unet).weights
    assert all(
        any(part in path for path in paths) for part in ("conv1", "downsamplers", "upsamplers", "time_emb_proj", "transformer_blocks.1")
    )


def test_full_precision_reads_prompts_as_diffusers_does_and_with_an_adapter_otherwise() -> None:
    reference, prompt = Reference(reference_dir(MODEL), reference_adapters(MODEL)), "a big red house on the left, on grass, by day"
    ids, folder = encode(xl_tokenizer(), [prompt]), reference_dir(MODEL)
    first = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", torch_dtype=torch.float32)
    with torch.inference_mode():
        theirs = [encoder(ids, output_hidden_states=True) for encoder in (first, second)]
    reference.use()
    words = reference.words([prompt])
    torch.testing.assert_close(words[:, : ids.shape[1]], torch.cat([output.hidden_states[-2] for output in theirs], dim=-1))
    torch.testing.assert_close(words[:, ids.shape[1], : base().text.pooled], theirs[1].text_embeds)
    reference.use("sticker")
    changed = (reference.words([prompt]) - words)[0].abs()
    assert changed[: ids.shape[1], : first.config.hidden_size].max() > 0.01
    assert changed[: ids.shape[1], first.config.hidden_size :].max() > 0.01
    reference.use("portrait")
    torch.testing.assert_close(reference.words([prompt]), words)
