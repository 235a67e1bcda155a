"""LoRA files that people met in public bug reports, a test a row; each kind of file has its own tests beside this one.

1, 2    a PEFT-wrapped network saved by another library's writer, or in a directory of another name
5       a fast LoRA and a style at once
6       biases and norms beside the matrices
7       names of the text encoder
8       a first convolution of four channels on a base of nine
14      an embedding beside the LoRA
15      a LoRA of a base with another prediction
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from quad.build.request import BuildRequest
from quad.core.errors import InputError
from quad.lora.adapter import FloatAdapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.layout import LayerLayout, NetworkLayout
from quad.lora.read import read_lora
from quad.model.adapters import read_adapter
from quad.model.slots.table import new_table
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.weighted_sum import mix_adapters
from tests.model.conftest import new_unet

Tensors = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
Q, RANK, ALPHA = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 4, 2.0
NORM, WORD = "lora_unet_mid_block_resnets_0_norm1", "text_model.encoder.layers.0.self_attn.q_proj"
UNET = NetworkLayout({"conv_in": LayerLayout((16, 9, 3, 3)), Q: LayerLayout((32, 32))})
TEXT = NetworkLayout({WORD.removeprefix("text_model."): LayerLayout((16, 16))})


def noise(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(name: str, width: int = 32, rank: int = RANK, ends: tuple[str, str] = ("lora_down.weight", "lora_up.weight")) -> Tensors:
    return {f"{name}.{ends[0]}": noise(rank, width, seed=1), f"{name}.{ends[1]}": noise(width, rank, seed=2)}


def kohya(name: str, width: int = 32, rank: int = RANK) -> Tensors:
    return {**pair(name, width, rank), f"{name}.alpha": np.array(ALPHA, np.float32)}


Q_FLAT = "lora_unet_" + Q.replace(".", "_")


def read(path: Path, tensors: Tensors, allow_unused: bool = False, metadata: dict[str, str] | None = None) -> FloatAdapter:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return read_lora("a", path, UNET, allow_unused, text_encoder=TEXT)


def change(adapter: FloatAdapter, path: str = Q) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = adapter.weights[path]
    product: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = np.tensordot(found.b.reshape(len(found.b), -1), found.a, 1)
    return product


@pytest.mark.parametrize("place", ["pytorch_lora_weights.safetensors", "transformer/adapter_model.safetensors"])
def test_1_and_2_peft_keys_wherever_they_were_saved(place: str, tmp_path: Path) -> None:
    tensors = pair(f"unet.base_model.model.{Q}", ends=("lora_A.weight", "lora_B.weight"))
    with pytest.raises(InputError, match="alpha is unknown"):
        read(tmp_path / place, tensors)
    (tmp_path / place).with_name("adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    adapter = read_lora("a", tmp_path, UNET)
    np.testing.assert_allclose(change(adapter), noise(32, RANK, seed=2) @ noise(RANK, 32, seed=1) * ALPHA / RANK, rtol=1e-4, atol=1e-5)


def test_5_a_fast_lora_and_a_style_fit_at_once_by_default(tmp_path: Path) -> None:
    unet = new_unet()
    adapters = []
    for name, seed in (("lcm", 3), ("ink", 4)):
        tensors = {key: values + noise(*values.shape, seed=seed) for key, values in pair(Q_FLAT, rank=16).items()}
        save_file({**tensors, f"{Q_FLAT}.alpha": np.array(16.0, np.float32)}, tmp_path / f"{name}.safetensors")
        adapters.append(read_adapter(name, tmp_path / f"{name}.safetensors", unet))
    room = BuildRequest(tmp_path, {}, tmp_path).slot_room
    table = new_table({"unet": unet}, adapters, room=room)
    mixed, notes = mix_adapters(
        {adapter.name: Buffers(slot_inputs(adapter, table)) for adapter in adapters}, {"lcm": 1.0, "ink": 0.8}, table,
        Buffers(slot_inputs(None, table)),
    )  # fmt: skip
    assert notes == ()
    expected = change(adapters[0]) + 0.8 * change(adapters[1])
    np.testing.assert_allclose(mixed[f"{Q}.lora_B"] @ mixed[f"{Q}.lora_A"], expected, rtol=1e-4, atol=1e-3)


def test_6_biases_and_norms_are_left_out_with_a_figure(tmp_path: Path) -> None:
    for ending in (".diff_b", ".w_norm", ".b_norm"):
        zeros = {**kohya(Q_FLAT), f"{NORM}{ending}": np.zeros(32, np.float32)}
        assert read(tmp_path / "a.safetensors", zeros).notes == ()
        trained = {**zeros, f"{NORM}{ending}": np.full(32, -0.125, np.float32)}
        with pytest.raises(InputError, match="pass --allow-unused-keys to leave them out"):
            read(tmp_path / "a.safetensors", trained)
        (note,) = read(tmp_path / "a.safetensors", trained, allow_unused=True).notes
        assert "left out, largest value 0.125" in note


@pytest.mark.parametrize("holder", ["text_encoders.clip_l.transformer.", "clip_l.transformer.", "clip_l."])
def test_7_names_of_the_text_encoder(holder: str, tmp_path: Path) -> None:
    adapter = read(tmp_path / "a.safetensors", {**kohya(Q_FLAT), **kohya(holder + WORD, width=16)})
    assert set(adapter.weights) == {Q, "text_encoder." + WORD.removeprefix("text_model.")}


def test_8_a_first_convolution_of_the_latent_alone(tmp_path: Path) -> None:
    down, up = noise(RANK, 4, 3, 3, seed=1), noise(16, RANK, 1, 1, seed=2)
    tensors = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    whole = change(read(tmp_path / "a.safetensors", tensors), "conv_in")
    np.testing.assert_allclose(whole[:, :4], np.tensordot(up[:, :, 0, 0], down, 1), rtol=1e-4, atol=1e-5)
    assert not whole[:, 4:].any()


def test_14_an_embedding_beside_the_lora(tmp_path: Path) -> None:
    adapter = read(tmp_path / "a.safetensors", {**kohya(Q_FLAT), "bundle_emb.cat.clip_l": noise(2, 16)})
    np.testing.assert_array_equal(adapter.embeddings["cat"], noise(2, 16))
    assert adapter.notes == ("trigger words with embeddings: cat (2 vectors)",)


@pytest.mark.parametrize(
    "metadata",
    [{"modelspec.prediction_type": "v"}, {"ss_base_model_version": "sd_v1_v"}, {"ss_v2": "True", "ss_base_model_version": "sd_v2_v"}],
)
def test_15_another_prediction_is_noted(metadata: dict[str, str], tmp_path: Path) -> None:
    adapter = read(tmp_path / "a.safetensors", kohya(Q_FLAT), metadata=metadata)
    (note,) = adapter.for_base("epsilon").notes
    assert note.startswith("trained on a base that predicts v_prediction, by its metadata; this one predicts epsilon")
    assert adapter.for_base("v_prediction").notes == ()
    plain = read(tmp_path / "a.safetensors", kohya(Q_FLAT), metadata={"modelspec.prediction_type": "epsilon"})
    assert len(plain.for_base("v_prediction").notes) == 1
