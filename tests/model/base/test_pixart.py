"""A transformer that is called as a U-Net: diffusers' own numbers, masks included, and slots that are PEFT's."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model
from quad.model.slots.network import Slotted, slot_networks
from quad.model.slots.sites import collect_sites
from quad.model.slots.skips import split_skips
from quad.quantize.encodings.rules import keeps_16_bits
from quad.runtime.conditioning.tokenizer import Tokenizer
from tests.pixart import ADAPTERS, TEXT_TARGETS, save_adapters, save_pixart, transformer

PROMPTS = ("a photo of the red house", "", "A Painting  of THE cat ", "the house " * 90, "\tan unknown zebra\n", "Σ é 家")
NO_CONDITIONS = {"resolution": None, "aspect_ratio": None}
BAR = 1e-4  # of the output's RMS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixart")


@pytest.fixture(scope="module")
def directory(root: Path) -> Path:
    return save_pixart(root / "model")


@pytest.fixture(scope="module")
def base(directory: Path) -> Base:
    return open_model(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return diffusers.PixArtAlphaPipeline.from_pretrained(directory, local_files_only=True)


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, Path]:
    return save_adapters(root / "loras")


@pytest.fixture(scope="module")
def adapters(base: Base, files: dict[str, Path]) -> tuple[FloatAdapter, ...]:
    return tuple(read_adapter(name, file, base.unet, text_encoder=base.text_encoder) for name, file in files.items())


@pytest.fixture(scope="module")
def slotted(base: Base, adapters: tuple[FloatAdapter, ...]) -> Slotted:
    return slot_networks(base.unet, base.text_encoder, adapters)


@pytest.fixture(scope="module")
def sample() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def ids_of(base: Base, prompt: str) -> Tensor:
    return torch.from_numpy(Tokenizer(base.tokenizer, base.text)(prompt).ids)


def their_ids(pipe: Any, prompt: str) -> Any:
    """As `PixArtAlphaPipeline.encode_prompt` makes them."""
    cleaned = pipe._text_preprocessing(prompt, clean_caption=False)
    return pipe.tokenizer(cleaned, padding="max_length", max_length=120, truncation=True, add_special_tokens=True, return_tensors="pt")


def their_noise(network: nn.Module, sample: Tensor, hidden: Tensor, mask: Tensor, t: float = 437.0) -> Tensor:
    """As `PixArtAlphaPipeline` asks for it."""
    with torch.no_grad():
        output = network(
            sample, encoder_hidden_states=hidden, timestep=torch.full((len(sample),), t), encoder_attention_mask=mask,
            added_cond_kwargs=NO_CONDITIONS, return_dict=False,
        )[0]  # fmt: skip
    return output.chunk(2, dim=1)[0]


def texts(base: Base) -> tuple[Tensor, Tensor]:
    """Hidden states and mask of two prompts of different lengths."""
    ids = torch.cat([ids_of(base, prompt) for prompt in PROMPTS[:2]])
    with torch.no_grad():
        return base.text_encoder(ids).last_hidden_state, ids != 0


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.square().mean().sqrt())


def test_what_is_opened(base: Base) -> None:
    assert (base.picture_size.width, base.text.length, base.text.pad_id, base.text.hidden) == (64, 120, 0, 12)
    assert base.latent.beside is msgspec.UNSET
    assert set(base.tasks) == {"text-to-image", "transform", "removal", "sketch", "inpainting"}
    assert base.tasks["removal"].blend is True
    assert {(spec.guidance, spec.sampler.kind) for spec in base.tasks.values()} == {(4.5, "dpmsolver++")}
    assert base.schedule.prediction == "epsilon"


def test_noise_and_hidden_states_are_those_of_diffusers(base: Base, theirs: Any, sample: Tensor) -> None:
    ids = torch.cat([ids_of(base, prompt) for prompt in PROMPTS[:2]])
    with torch.no_grad():
        expected = theirs.text_encoder(ids, attention_mask=(ids != 0).long())[0]
        hidden = base.text_encoder(ids).last_hidden_state
        ours = base.unet(sample, torch.tensor([437.0]), hidden, return_dict=False)[0]
    read = (ids != 0)[..., None]
    torch.testing.assert_close(hidden, expected * read, rtol=0, atol=0)
    assert bool((hidden.abs().amax(-1) > 0).eq(read[..., 0]).all())  # what is not padding has no row of zeros
    torch.testing.assert_close(ours, their_noise(theirs.transformer, sample, expected, read[..., 0]), rtol=0, atol=0)
    unmasked = their_noise(theirs.transformer, sample, expected, torch.ones_like(ids))
    assert error(unmasked, ours) > 0.01  # the mask counts
    with torch.no_grad():
        torch.testing.assert_close(base.unet(sample, 437.0, hidden).sample, ours, rtol=0, atol=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_the_pipeline(prompt: str, base: Base, theirs: Any) -> None:
    assert ids_of(base, prompt).tolist() == their_ids(theirs, prompt).input_ids.tolist()


def test_every_layer_and_attention_operand_has_a_site(slotted: Slotted) -> None:
    for network, attentions in ((slotted.unet, ("attn1", "attn2")), (slotted.text_encoder, ("SelfAttention",))):
        assert network is not None
        sites = collect_sites(network)
        layers = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        slots = [path.removeprefix("unet.") for path in layers]
        assert not [path for path in slots if f"{path}.in" not in sites]
        attention_layers = [path.removeprefix("unet.") for path, _ in network.named_modules() if path.endswith(attentions)]
        assert attention_layers
        assert not [path for path in attention_layers for operand in "qkvp" if f"{path}.{operand}" not in sites]
    assert split_skips(slotted.unet) == ()
    last = {name for name in slotted.unet.sites if keeps_16_bits(name)}
    assert {"pos_embed.proj.in", "proj_out.in", "adaln_single.linear.in", "adaln_single.emb.timestep_embedder.linear_1.in"} <= last
    assert "transformer_blocks.0.ff.net.2.in" not in last


def test_slots_are_of_both_networks_and_zeros_are_the_base(slotted: Slotted, base: Base, sample: Tensor) -> None:
    assert {slot.component for slot in slotted.table.slots} == {UNET, TEXT_ENCODER}
    zeros = {name: torch.from_numpy(value) for name, value in slot_inputs(None, slotted.table).items()}
    hidden, _ = texts(base)
    with torch.no_grad():
        ours = slotted.unet(sample, torch.tensor([437.0]), hidden, zeros)
        torch.testing.assert_close(ours, slotted.unet(sample, torch.tensor([437.0]), hidden), rtol=0, atol=0)
        expected = base.unet(sample, torch.tensor([437.0]), hidden, return_dict=False)[0]
    assert error(ours, expected) < BAR


def _loaded(network: nn.Module, tensors: dict[str, Tensor], rank: int) -> nn.Module:
    """A copy with PEFT's LoRA of these weights, alpha being the rank."""
    paths = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    peft_model: Any = get_peft_model(copy.deepcopy(network), LoraConfig(r=rank, lora_alpha=rank, target_modules=paths))  # type: ignore[arg-type]
    state = peft_model.state_dict()
    for key, tensor in tensors.items():
        path, role, _ = key.rsplit(".", 2)
        state[f"base_model.model.{path}.{role}.default.weight"].copy_(tensor)
    model: nn.Module = peft_model.base_model.model
    return model


def _own(file: Path, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in load_file(file).items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_slots_are_peft(name: str, slotted: Slotted, base: Base, theirs: Any, files: dict[str, Path], adapters: tuple[FloatAdapter, ...],
                        sample: Tensor) -> None:  # fmt: skip
    adapter = next(candidate for candidate in adapters if candidate.name == name)
    slots = {key: torch.from_numpy(value) for key, value in slot_inputs(adapter, slotted.table).items()}
    hidden, mask = texts(base)
    loaded = _loaded(theirs.transformer, _own(files[name], "transformer."), ADAPTERS[name][0])
    with torch.no_grad():
        ours = slotted.unet(sample, torch.tensor([437.0]), hidden, slots)
    expected = their_noise(loaded, sample, hidden, mask)
    assert error(ours, expected) <= BAR
    assert error(their_noise(theirs.transformer, sample, hidden, mask), expected) > 0.05  # the adapter counts


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
def test_slots_of_t5_are_peft(
    slotted: Slotted, base: Base, theirs: Any, files: dict[str, Path], adapters: tuple[FloatAdapter, ...]
) -> None:
    assert slotted.text_encoder is not None
    slots = {key: torch.from_numpy(value) for key, value in slot_inputs(adapters[0], slotted.table).items()}
    loaded: Any = _loaded(theirs.text_encoder, _own(files["ink"], "text_encoder."), ADAPTERS["ink"][0])
    assert all(slot.path.endswith(TEXT_TARGETS) for slot in slotted.table.of(TEXT_ENCODER).slots)
    for prompt in PROMPTS[:2]:
        ids = ids_of(base, prompt)
        with torch.no_grad():
            ours = slotted.text_encoder(ids, slots=slots)
            expected = loaded(ids, attention_mask=(ids != 0).long())[0] * (ids != 0)[..., None]
            plain = theirs.text_encoder(ids, attention_mask=(ids != 0).long())[0] * (ids != 0)[..., None]
        assert error(ours, expected) <= BAR
        assert error(plain, expected) > 0.01


def test_a_peft_directory_with_its_alpha(base: Base, theirs: Any, sample: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "to_v", "ff.net.2", "proj_out"], init_lora_weights=False)  # type: ignore[arg-type]
    peft_model: Any = get_peft_model(copy.deepcopy(theirs.transformer), config)
    peft_model.save_pretrained(tmp_path)
    adapter = read_adapter("peft", tmp_path, base.unet)
    slotted = slot_networks(base.unet, base.text_encoder, [adapter])
    hidden, mask = texts(base)
    slots = {key: torch.from_numpy(value) for key, value in slot_inputs(adapter, slotted.table).items()}
    with torch.no_grad():
        ours = slotted.unet(sample, torch.tensor([437.0]), hidden, slots)
    assert error(ours, their_noise(peft_model.base_model.model, sample, hidden, mask)) <= BAR


def test_tied_embeddings_are_one(base: Base) -> None:
    encoder: Any = base.text_encoder
    assert isinstance(encoder, transformers.T5EncoderModel)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert np.isfinite(encoder.shared.weight.numpy()).all()


def test_a_model_that_did_not_learn_its_variance(directory: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(directory, tmp_path / "model"))
    network = transformer(out_channels=4)
    network.save_pretrained(copied / "transformer")
    base, sample = open_model(copied), torch.ones(1, 4, 8, 8)
    hidden, mask = texts(base)
    with torch.no_grad():
        ours = base.unet(sample, 3.0, hidden[:1]).sample
        expected = network(sample, hidden[:1], torch.tensor([3.0]), NO_CONDITIONS, encoder_attention_mask=mask[:1]).sample
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
