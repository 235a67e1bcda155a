"""A shorter text encoder gives diffusers' own states, and an adapter's modules of the layers that it lacks are left out, with a line."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from quad.core.errors import InputError, UnsupportedError, UsageError
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model, text_module
from quad.model.base.text.clip_skip import with_clip_skip
from quad.runtime.conditioning.tokenizer import Tokenizer
from tests.evaluate.stable_diffusion import open_pipeline, save_pipeline, scheduler
from tests.pixart import save_pixart


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("sd"), 4, scheduler())


@pytest.fixture(scope="module")
def base(model: Path) -> Base:
    return open_model(model)


def test_the_states_are_those_of_diffusers_rule(model: Path, base: Base) -> None:
    pipe = open_pipeline(model, diffusers.StableDiffusionPipeline)
    for clip_skip in (1, 2):
        skipped = with_clip_skip(base, clip_skip)
        ids = torch.from_numpy(Tokenizer(base.tokenizer, base.text)("a cat on the mat").ids)
        # diffusers' rule, which its pipeline cannot follow with transformers 5, where `text_model` is gone
        hidden = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
        theirs = pipe.text_encoder.final_layer_norm(hidden)
        torch.testing.assert_close(text_module(skipped)(ids), theirs, rtol=1e-6, atol=1e-6)
        assert skipped.text.skipped_layers == clip_skip - 1
    assert with_clip_skip(base, 1) is base
    assert len(base.text_encoder.encoder.layers) == 2  # type: ignore[union-attr, arg-type]


def _lora(path: Path, layers: int) -> Path:
    keys = [f"lora_te_text_model_encoder_layers_{layer}_mlp_fc1" for layer in range(layers)]
    tensors = {f"{key}.{part}.weight": torch.ones(shape) for key in keys for part, shape in (("lora_down", (1, 16)), ("lora_up", (32, 1)))}
    save_file(tensors, path)
    return path


def test_an_adapter_of_all_layers_is_read(base: Base, tmp_path: Path) -> None:
    file = _lora(tmp_path / "style.safetensors", 2)
    skipped = with_clip_skip(base, 2)
    adapter = read_adapter("style", file, skipped.unet, text_encoder=skipped.text_encoder)
    assert list(adapter.weights) == ["text_encoder.encoder.layers.0.mlp.fc1"]
    assert any("1 modules left out, of text encoder layers that clip skip leaves out: text_encoder.encoder.layers.1.mlp.fc1" in note
               for note in adapter.notes)  # fmt: skip
    with pytest.raises(InputError, match=r"expected every key to match.*layers_2_mlp_fc1"):
        read_adapter("style", _lora(tmp_path / "b.safetensors", 3), skipped.unet, text_encoder=skipped.text_encoder)


@pytest.mark.parametrize("clip_skip", [0, 3])
def test_layers_that_are_not_there(clip_skip: int, base: Base) -> None:
    with pytest.raises(UsageError, match=rf"--clip-skip: expected 1 to 2, 1 for all layers, found {clip_skip}"):
        with_clip_skip(base, clip_skip)


def test_another_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--clip-skip: expected CLIP's text encoder, found t5"):
        with_clip_skip(open_model(save_pixart(tmp_path)), 2)
