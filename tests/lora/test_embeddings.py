"""Textual inversion in a file of its own and inside a LoRA, as diffusers, A1111 and OneTrainer write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts
from safetensors.torch import save_file
from torch import Tensor

from quad.core.errors import InputError, UnsupportedError
from quad.lora.embeddings import read_embeddings
from quad.model.adapters import read_adapter

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora() -> dict[str, Tensor]:
    return {f"{LAYER}.lora_down.weight": draw(4, 32), f"{LAYER}.lora_up.weight": draw(32, 4), f"{LAYER}.alpha": torch.tensor(2.0)}


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8)])
def test_a_file_of_diffusers_gives_what_diffusers_reads(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved(tmp_path / "embeds" / "learned_embeds.safetensors", {"<cat.v2>": draw(*shape).to(dtype)})
    states = load_textual_inversion_state_dicts([str(tmp_path / "embeds")], local_files_only=True)

    class Empty:
        def get_vocab(self) -> dict[str, int]:
            return {}

    tokens, vectors = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], states, Empty())
    for place in (path, path.parent):
        words = read_embeddings(place)
        assert list(words) == tokens
        assert words["<cat.v2>"].dtype == np.float32
        np.testing.assert_array_equal(words["<cat.v2>"], torch.atleast_2d(vectors[0]).float().numpy())


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "clip_l", "string_to_param.*"])
def test_a_file_of_a1111_is_called_by_its_name(key: str, tmp_path: Path) -> None:
    words = read_embeddings(saved(tmp_path / "my cat.v2.safetensors", {key: draw(2, 8)}))
    assert list(words) == ["my cat.v2"]
    np.testing.assert_array_equal(words["my cat.v2"], draw(2, 8).numpy())


def test_a_lora_brings_its_words(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    bundled = {
        "bundle_emb.v1.0.clip_l": draw(2, 16),
        "bundle_emb.<dog>.emb_params": draw(1, 16, seed=1),
        "bundle_emb.a cat.string_to_param.*": draw(16, seed=2),
        "bundle_emb.v1.0.clip_l_out": draw(2, 16),
    }
    path = saved(tmp_path / "a.safetensors", {**lora(), **bundled})
    adapter, plain = read_adapter("a", path, unet), read_adapter("a", saved(tmp_path / "b.safetensors", lora()), unet)
    assert {word: vectors.shape for word, vectors in adapter.embeddings.items()} == {"v1.0": (2, 16), "<dog>": (1, 16), "a cat": (1, 16)}
    np.testing.assert_array_equal(adapter.embeddings["v1.0"], draw(2, 16).numpy())
    assert {word: vectors.tolist() for word, vectors in read_embeddings(path).items()} == {
        word: vectors.tolist() for word, vectors in adapter.embeddings.items()
    }
    assert adapter.notes == (
        "trigger words with embeddings: <dog> (1 vector), a cat (1 vector), v1.0 (2 vectors)",
        "embeddings of another text encoder left out: bundle_emb.v1.0.clip_l_out",
    )
    assert adapter.weights.keys() == plain.weights.keys()
    for name, pair in plain.weights.items():
        np.testing.assert_array_equal(adapter.weights[name].a, pair.a)
        np.testing.assert_array_equal(adapter.weights[name].b, pair.b)
    assert (plain.embeddings, plain.notes) == ({}, ())


def test_vectors_of_two_text_encoders_stand_side_by_side(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    pair = {"clip_g": draw(2, 12), "clip_l": draw(2, 8)}
    alone = read_embeddings(saved(tmp_path / "toy.safetensors", pair))
    bundled = {**{f"bundle_emb.toy.{part}": vectors for part, vectors in pair.items()}, "bundle_emb.dog.clip_g": draw(1, 12)}
    adapter = read_adapter("a", saved(tmp_path / "a.safetensors", {**lora(), **bundled}), unet)
    expected = torch.cat([pair["clip_l"], pair["clip_g"]], dim=1).numpy()
    for words in (alone, adapter.embeddings):
        assert words.keys() == {"toy"}
        np.testing.assert_array_equal(words["toy"], expected)
    assert adapter.notes[-1] == "embeddings of another text encoder left out: bundle_emb.dog.clip_g"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "found no tensors at all"),
        ({"a": draw(2, 8), "b": draw(2, 8)}, "found 2 tensors: a, b"),
        (lora(), "expected one embedding, or a LoRA with bundle_emb, found 3 tensors"),
        ({"bundle_emb.": draw(2, 8)}, "found 1 tensors: bundle_emb."),
        ({"<cat>": draw(2, 3, 8)}, r"expected vectors \(n, width\), found \(2, 3, 8\)"),
        ({"<cat>": draw(0, 8)}, r"expected vectors \(n, width\), found \(0, 8\)"),
        ({"<cat>": draw(2, 8) * torch.nan}, "finite numbers, found NaN or Inf"),
        ({"<cat>": draw(2, 8).double() * 1e300}, "finite numbers, found NaN or Inf"),
        ({" ": draw(2, 8)}, "a word of 1 to 200 printable letters"),
        ({"a\x1b[2J": draw(2, 8)}, "a word of 1 to 200 printable letters"),
        ({"a" * 201: draw(2, 8)}, "a word of 1 to 200 printable letters"),
        ({"bundle_emb.cat.clip_l": draw(2, 8), "bundle_emb.cat.emb_params": draw(2, 8)}, "one embedding for 'cat', found two"),
        ({"clip_l": draw(2, 8), "clip_g": draw(1, 12)}, "as many vectors for clip_l as for clip_g, found 2 and 1"),
        ({"bundle_emb.cat.clip_l": draw(2, 8) * torch.inf}, "finite numbers, found NaN or Inf"),
    ],
)
def test_what_is_no_embedding_is_one_line(tensors: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_embeddings(saved(tmp_path / "a.safetensors", tensors))


def test_another_models_embedding_and_pickles_are_refused(tmp_path: Path) -> None:
    for others in (("clip_g",), ("clip_l", "t5xxl")):
        with pytest.raises(UnsupportedError, match=f"vectors for {', '.join(others)}: another model's text encoders"):
            read_embeddings(saved(tmp_path / "a.safetensors", {name: draw(2, 8) for name in others}))
    for name in ("cat.pt", "learned_embeds.bin"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(InputError, match="pickle"):
            read_embeddings(tmp_path / name)
    for missing in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_embeddings(missing)
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(InputError, match="whole safetensors file"):
        read_embeddings(tmp_path / "cut.safetensors")


def test_embeddings_alone_are_no_lora(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"bundle_emb.cat.clip_l": draw(2, 16)})
    with pytest.raises(InputError, match="expected a LoRA, found embeddings alone"):
        read_adapter("a", path, unet)


@pytest.mark.parametrize("key", ["<cat>", "emb_params"])
def test_an_embedding_given_as_an_adapter_is_told_where_it_belongs(key: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    with pytest.raises((InputError, UnsupportedError), match=r"quad run --embedding WORD=FILE$"):
        read_adapter("a", saved(tmp_path / "a.safetensors", {key: draw(2, 16)}), unet)
