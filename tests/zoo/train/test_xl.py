"""What `toyland-xl` begins with, and what its U-Net is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn

from quad.core.ports import Sinusoid
from quad.model.adapters import read_adapter
from quad.zoo.reference import ADAPTER_FILE, reference_dir
from quad.zoo.samples import TASKS, sample
from quad.zoo.train import text
from quad.zoo.train.cache import LATENT
from quad.zoo.train.writers import save_diffusers
from quad.zoo.train.xl import networks, sizes, words

CAPTIONS = [sample("text-to-image", seed).prompt for seed in range(40)]


def test_its_tokenizer_has_the_words_of_toyland_and_ends_with_the_largest_number() -> None:
    tokenizer, old = networks.xl_tokenizer(), text.new_tokenizer()
    assert tokenizer.get_vocab().keys() == old.get_vocab().keys()
    for task in TASKS:
        prompt = sample(task, 3).prompt
        assert tokenizer.encode(prompt).tokens == old.encode(prompt).tokens
        assert max(tokenizer.encode(prompt).ids) == tokenizer.token_to_id("<eos>") == len(networks.ORDER) - 1


def test_the_unet_begins_as_toylands() -> None:
    toyland_text, _, toyland = networks.load_toyland(reference_dir())
    unet, (first, second) = networks.new_unet(), networks.new_texts()
    networks.start_unet(unet, toyland, networks.norm_as_linear(toyland_text, CAPTIONS))
    networks.start_first_text(first, toyland_text)
    pair = words.PairWords(networks.pair_of(first, second))
    x, t = torch.randn(4, 9, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 700, 400, 100])
    with torch.inference_mode():
        new = unet(x, t, pair(text.encode(networks.xl_tokenizer(), CAPTIONS[:4]), None)).sample
        old = toyland(x, t, toyland_text(text.encode(text.new_tokenizer(), CAPTIONS[:4])).last_hidden_state).sample
    assert float((new - old).norm() / old.norm()) < 0.05


def test_an_empty_caption_is_zeros_and_sizes_are_the_runtimes() -> None:
    pair = words.PairWords(networks.pair_of(*networks.new_texts()))
    numbers = torch.tensor([[64, 64, 0, 0, 128, 128], [192, 192, 32, 8, 128, 128]])
    with torch.inference_mode():
        rows = pair(text.encode(networks.xl_tokenizer(), ["", CAPTIONS[0]]), numbers)
    assert rows.shape == (2, text.LENGTH + 2, text.HIDDEN + networks.SECOND_HIDDEN)
    assert not rows[0, :-1].any()
    assert rows[1, :-1].any()
    sinusoid = Sinusoid(channels=networks.SIZE_CHANNELS, cosine_first=True, shift=0.0)
    for row, six in zip(rows, numbers, strict=True):
        waves = sinusoid(six.numpy().astype(np.float32)).reshape(-1)
        np.testing.assert_allclose(row[-1, : waves.size].numpy(), waves, atol=1e-5)


@pytest.mark.parametrize("kind", sizes.XL_KINDS)
def test_pictures_are_what_their_sizes_say(kind: str) -> None:
    for seed in range(6):
        height, width, top, left, *target = sizes.size_numbers(kind, seed)
        pictures, masks, caption = sizes.XL_KINDS[kind](seed)
        assert caption
        assert target == [sizes.SIZE, sizes.SIZE]
        assert height == width
        assert (kind == "small") == (height < sizes.SIZE)
        assert max(top, left) + sizes.SIZE <= max(height, sizes.SIZE)
        assert all(picture.shape == (sizes.HALF, sizes.HALF, 3) and picture.dtype == np.uint8 for picture in pictures)
        assert all(mask.shape == (LATENT, LATENT) for mask in masks)


def test_a_file_holds_the_lora_of_both_text_encoders(tmp_path: Path) -> None:
    unet, (first, second) = networks.new_unet(), networks.new_texts()
    pair = networks.pair_of(first, second)
    for network, target in ((unet, "attn2.to_q"), (first, "q_proj"), (second, "q_proj")):
        network.requires_grad_(False)
        network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=[target]), adapter_name="words")
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
    save_diffusers(unet, "words", tmp_path, {"text_encoder": first, "text_encoder_2": second})
    plain = networks.pair_of(*networks.new_texts()).requires_grad_(False)
    adapter = read_adapter("words", tmp_path / ADAPTER_FILE, networks.new_unet().requires_grad_(False), text_encoder=plain)
    places = {path.split(".layers")[0].removesuffix(".text_model.encoder") for path in adapter.weights if path.startswith("text_encoder.")}
    assert len(places) == 2
    assert sum(path.startswith("text_encoder.") for path in adapter.weights) == len(text_layers(pair))


def text_layers(pair: nn.Module) -> list[str]:
    """Layers of both text encoders that were given a LoRA."""
    return [name for name, _ in pair.named_modules() if name.endswith("q_proj")]
