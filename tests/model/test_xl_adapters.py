"""LoRA files of every SDXL dialect change the network as diffusers with PEFT does: U-Net, both text encoders, convolutions, embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from quad.core.errors import InputError
from quad.core.slots import TEXT_ENCODER
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.module_names import original_names
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model
from quad.model.slots.network import slot_networks
from tests.model.dialects import TARGETS, pairs, strong_lora
from tests.stable_diffusion_xl import LENGTH, save_xl

BAR = 1e-4  # of the output's RMS
ALPHA = 3.0
UNET_TARGETS = (*(ending for endings in TARGETS.values() for ending in endings), "add_embedding.linear_1", "add_embedding.linear_2")
TEXT_TARGETS = (*TARGETS["text"], "text_projection")
MODELS = ("unet", "text_encoder", "text_encoder_2")
Tensors = dict[str, Tensor]
Parts = Mapping[str, Tensors]  # model -> `<path>.lora_A.weight` and `<path>.lora_B.weight`


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = save_xl(tmp_path_factory.mktemp("xl"))
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(directory, local_files_only=True, add_watermarker=False)
    pipe.directory = directory
    return pipe


@pytest.fixture(scope="module")
def base(theirs: Any) -> Base:
    return open_model(theirs.directory)


@pytest.fixture(scope="module")
def parts(theirs: Any) -> Parts:
    """One adapter; its matrices of the last layer of the first text encoder are there, and nobody reads that layer."""
    targets = (UNET_TARGETS, TEXT_TARGETS, TEXT_TARGETS)
    return {name: strong_lora(getattr(theirs, name), ends, (2, 3)) for name, ends in zip(MODELS, targets, strict=True)}


def bare(tensors: Tensors) -> Tensors:
    return {key.removeprefix("text_model."): value for key, value in tensors.items()}


def diffusers_keys(parts: Parts, _: Any) -> Tensors:
    return {
        f"{name}.{'text_model.' if name != 'unet' else ''}{key}": value
        for name, tensors in parts.items()
        for key, value in bare(tensors).items()
    }


def flat(parts: Parts, prefixes: Mapping[str, str], names: Mapping[str, str]) -> Tensors:
    """kohya's underscores, with an alpha."""
    tensors: Tensors = {}
    for model, prefix in prefixes.items():
        wrapper = "" if model == "unet" else "text_model_"
        for path, (a, b) in pairs(bare(parts[model])).items():
            inner = "" if path == "text_projection" else wrapper
            name = prefix + inner + (names.get(path, path) if model == "unet" else path).replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(ALPHA)}
    return tensors


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def unet_names(theirs: Any) -> dict[str, str]:
    return original_names([path for path, _ in theirs.unet.named_modules()])


def comfy(parts: Parts, theirs: Any) -> Tensors:
    """Original block names with dots, and the text encoders by ComfyUI's names."""
    names, tensors = unet_names(theirs), Tensors()
    holders = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer."}
    for model, of_model in parts.items():
        for path, (a, b) in pairs(bare(of_model)).items():
            inner = "" if path == "text_projection" else "text_model."
            name = f"diffusion_model.{names[path]}" if model == "unet" else f"{holders[model]}{inner}{path}"
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
    return tensors


def omi(parts: Parts, theirs: Any) -> Tensors:
    """OneTrainer's, after the Open Model Initiative."""
    names, tensors = unet_names(theirs), Tensors()
    holders = {"text_encoder": "clip_l.", "text_encoder_2": "clip_g."}
    for model, of_model in parts.items():
        for path, (a, b) in pairs(bare(of_model)).items():
            inner = "" if path == "text_projection" else "text_model."
            name = f"unet.{names[path]}" if model == "unet" else f"{holders[model]}{inner}{path}"
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(ALPHA)}
    return tensors


# Spelling, and the alpha that it says; None for that of its own rank.
DIALECTS: Mapping[str, tuple[Callable[[Parts, Any], Tensors], float | None]] = {
    "diffusers": (diffusers_keys, None),
    "kohya": (lambda parts, _: flat(parts, KOHYA, {}), ALPHA),
    "kohya, SGM blocks": (lambda parts, theirs: flat(parts, KOHYA, unet_names(theirs)), ALPHA),
    "ComfyUI": (comfy, None),
    "OneTrainer": (omi, ALPHA),
}


def loaded(network: nn.Module, tensors: Tensors, alpha: float | None) -> nn.Module:
    """A copy with PEFT's LoRA of these weights."""
    ranks = {key.removesuffix(".lora_A.weight"): len(value) for key, value in tensors.items() if key.endswith(".lora_A.weight")}
    alphas = {path: rank if alpha is None else alpha for path, rank in ranks.items()}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas)  # type: ignore[arg-type]
    peft_model: Any = get_peft_model(copy.deepcopy(network), config)  # type: ignore[arg-type]
    state = peft_model.state_dict()
    for key, tensor in tensors.items():
        path, role, _ = key.rsplit(".", 2)
        state[f"base_model.model.{path}.{role}.default.weight"].copy_(tensor)
    model: nn.Module = peft_model.base_model.model
    return model


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.square().mean().sqrt())


def ours(base: Base, adapter: FloatAdapter, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the text encoder, and of the U-Net on given rows."""
    slotted = slot_networks(base.unet, base.text_encoder, [adapter])
    slots = {key: torch.from_numpy(value) for key, value in slot_inputs(adapter, slotted.table).items()}
    assert slotted.text_encoder is not None
    with torch.no_grad():
        return slotted.text_encoder(ids, slots=slots), slotted.unet(torch.ones(1, 4, 8, 8), torch.tensor([437.0]), rows, slots)


@pytest.fixture(scope="module")
def expected(theirs: Any, base: Base, parts: Parts) -> Callable[[float | None], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """By alpha: ids, rows, and what diffusers' networks with PEFT's layers make of them."""
    made: dict[float | None, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def make(alpha: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if alpha not in made:
            first, second, unet = (loaded(getattr(theirs, name), parts[name], alpha) for name in ("text_encoder", "text_encoder_2", "unet"))
            draw = torch.Generator().manual_seed(2)
            ids = torch.randint(0, base.text.pad_id, (1, LENGTH), generator=draw)
            ids[:, 20:] = base.text.pad_id
            ids_2 = ids.clone()
            ids_2[:, 21:] = theirs.tokenizer_2.pad_token_id
            rows = torch.randn(1, base.text.rows, base.text.hidden, generator=draw)
            with torch.no_grad():
                states = first(ids, output_hidden_states=True).hidden_states[-2]
                output = second(ids_2, output_hidden_states=True)
                pooled = nn.functional.pad(output.text_embeds, (0, base.text.hidden - output.text_embeds.shape[1]))
                text = torch.cat([torch.cat([states, output.hidden_states[-2]], -1), pooled[:, None]], 1)
                unet.__class__ = type(base.unet)
                noise = unet(torch.ones(1, 4, 8, 8), torch.tensor([437.0]), rows).sample
            made[alpha] = ids, rows, text, noise
        return made[alpha]

    return make


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_diffusers_with_peft(
    dialect: str, theirs: Any, base: Base, parts: Parts, expected: Callable[..., Any], tmp_path: Path
) -> None:
    spell, alpha = DIALECTS[dialect]
    file = tmp_path / "ink.safetensors"
    save_file({key: value.contiguous() for key, value in spell(parts, theirs).items()}, file)
    adapter = read_adapter("ink", file, base.unet, text_encoder=base.text_encoder)
    ids, rows, text, noise = expected(alpha)
    our_text, our_noise = ours(base, adapter, ids, rows)
    assert error(our_text[:, :LENGTH], text[:, :LENGTH]) <= BAR
    assert error(our_text[:, LENGTH:], text[:, LENGTH:]) <= BAR
    assert error(our_noise, noise) <= BAR
    with torch.no_grad():
        assert error(base.text_encoder(ids).last_hidden_state, text) > 0.05  # the adapter counts
        assert error(base.unet(torch.ones(1, 4, 8, 8), torch.tensor([437.0]), rows).sample, noise) > 0.05
    left = [note for note in adapter.notes if "clip skip leaves out" in note]
    assert left == [next(iter(left))]
    assert left[0].startswith("6 modules left out")
    slots = {path for path in adapter.weights if path.startswith(TEXT_ENCODER)}
    assert any(path.startswith("text_encoder.clip_g.") for path in slots)
    assert {"text_encoder.clip_g.text_projection", "add_embedding.linear_1", "time_embedding.linear_2"} <= adapter.weights.keys()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_peft_directory_for_each_model(theirs: Any, base: Base, parts: Parts, expected: Callable[..., Any], tmp_path: Path) -> None:
    for name in MODELS:
        ranks = {path: len(a) for path, (a, _) in pairs(parts[name]).items()}
        config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=dict.fromkeys(ranks, ALPHA))  # type: ignore[arg-type]
        config.save_pretrained(tmp_path / name)
        save_file({f"base_model.model.{key}": value for key, value in parts[name].items()}, tmp_path / name / "adapter_model.safetensors")
    adapter = read_adapter("ink", tmp_path, base.unet, text_encoder=base.text_encoder)
    ids, rows, text, noise = expected(ALPHA)
    our_text, our_noise = ours(base, adapter, ids, rows)
    assert error(our_text, text) <= BAR
    assert error(our_noise, noise) <= BAR


def test_lycoris_kinds_reach_both_text_encoders(base: Base, tmp_path: Path) -> None:
    """LoHa of the second text encoder, LoKr of the size embedding: what they add, by their formulas."""
    draw = torch.Generator().manual_seed(6)
    layers = {
        "text_encoder.clip_g.text_model.encoder.layers.1.mlp.fc1": ("lora_te2_text_model_encoder_layers_1_mlp_fc1", 32, 24),
        "add_embedding.linear_2": ("lora_unet_label_emb_0_2", 64, 64),
    }
    tensors: Tensors = {}
    hada = [torch.randn(*shape, generator=draw) for shape in ((32, 2), (2, 24), (32, 2), (2, 24))]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors |= {f"lora_te2_text_model_encoder_layers_1_mlp_fc1.{name}": value for name, value in zip(names, hada, strict=True)}
    w1, w2 = torch.randn(4, 4, generator=draw), torch.randn(16, 16, generator=draw)
    tensors |= {"lora_unet_label_emb_0_2.lokr_w1": w1, "lora_unet_label_emb_0_2.lokr_w2": w2}
    save_file(tensors, tmp_path / "ink.safetensors")
    adapter = read_adapter("ink", tmp_path / "ink.safetensors", base.unet, text_encoder=base.text_encoder)
    updates = [(hada[0] @ hada[1]) * (hada[2] @ hada[3]), torch.kron(w1, w2)]
    for (path, (_, outputs, inputs)), update in zip(layers.items(), updates, strict=True):
        pair = adapter.weights[path]
        product = torch.from_numpy(pair.b) @ torch.from_numpy(pair.a)
        assert product.shape == (outputs, inputs)
        assert float((product - update).norm() / update.norm()) <= 0.04  # 99.9 % of its energy


@pytest.mark.parametrize(("width", "family"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x")])
def test_a_lora_of_another_generation_is_named(width: int, family: str, base: Base, tmp_path: Path) -> None:
    q = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    other = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    flat_q = f"lora_unet_{q.replace('.', '_')}"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, width) for name in (flat_q, other)}
    tensors |= {f"{name}.lora_up.weight": torch.ones(32, 2) for name in (flat_q, other)}
    save_file(tensors, tmp_path / "ink.safetensors")
    with pytest.raises(InputError, match=rf"text features of width 40, as this base has, found \(2, {width}\): {family}"):
        read_adapter("ink", tmp_path / "ink.safetensors", base.unet, text_encoder=base.text_encoder)


def test_what_matches_nothing_is_not_said_to_be_for_sdxl(base: Base, tmp_path: Path) -> None:
    q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2)}
    tensors = {f"{path}.{role}": value.clone() for path in (q, f"{q}_x") for role, value in pair.items()}
    tensors |= {key.replace("unet.", "text_encoder_2.text_model."): value.clone() for key, value in tensors.items() if "_x" in key}
    save_file(tensors, tmp_path / "ink.safetensors")
    with pytest.raises(InputError, match="4 of 6 match nothing"):
        read_adapter("ink", tmp_path / "ink.safetensors", base.unet, text_encoder=base.text_encoder)
