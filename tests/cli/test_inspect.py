"""`quad inspect` on LoRA files and packs; bundles are in test_run.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import Result
from diffusers import UNet2DConditionModel
from safetensors.numpy import save_file
from typer.testing import CliRunner

from quad.cli.main import app
from quad.core.manifest import FORMAT_VERSION, AdapterManifest
from quad.core.sampling import AdapterDefaults
from quad.core.storage.pack import write_pack
from tests.model.conftest import model_dir as model_dir
from tests.model.conftest import unet as unet
from tests.runtime.conftest import normalised_bundle as normalised_bundle
from tests.runtime.conftest import normalised_manifest, normalised_tensors

RUNNER = CliRunner()
PATH = "down_blocks.0.attentions.0.to_q"


def _inspect(path: Path) -> dict[str, Any]:
    done = RUNNER.invoke(app, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    return facts


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight"),
        (f"base_model.model.{PATH}.lora_A.weight", f"base_model.model.{PATH}.lora_B.weight"),
        (f"lora_unet_{PATH.replace('.', '_')}.lora_down.weight", f"lora_unet_{PATH.replace('.', '_')}.lora_up.weight"),
    ],
)
@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 32), (np.float16, 16)])
def test_a_lora_file_of_each_dialect(tmp_path: Path, down: str, up: str, dtype: type, bits: int) -> None:
    file = tmp_path / "ink.safetensors"
    save_file({down: np.ones((4, 8), dtype), up: np.ones((8, 4), dtype)}, file)
    facts = _inspect(file)
    assert (facts["kind"], facts["slots"], facts["slots_digest"]) == ("lora", 1, None)
    assert facts["adapters"] == {"ink": {"rank": 4, "bits": bits, "bytes": file.stat().st_size}}


def test_a_diffusers_directory_is_named_after_itself(tmp_path: Path) -> None:
    (tmp_path / "ink").mkdir()
    save_file({f"unet.{PATH}.lora_A.weight": np.ones((2, 8), np.float32)}, tmp_path / "ink" / "pytorch_lora_weights.safetensors")
    assert _inspect(tmp_path / "ink")["adapters"]["ink"]["rank"] == 2


def test_other_kinds_are_counted_with_their_own_ranks(tmp_path: Path) -> None:
    """From the header alone: LoHa's columns, LoKr's smaller factor, and the text encoder's modules apart from the U-Net's."""
    flat, ones = f"lora_unet_{PATH.replace('.', '_')}", lambda *shape: np.ones(shape, np.float16)
    tensors = {f"{flat}.hada_w{i}_{side}": ones(*((8, 3) if side == "a" else (3, 8))) for i in (1, 2) for side in "ab"}
    tensors |= {"lora_unet_conv_in.lokr_w1": ones(2, 2), "lora_unet_conv_in.lokr_w2": ones(4, 6, 3, 3)}
    tensors |= {"lora_unet_k.lora_down.weight": ones(2, 8), "lora_unet_k.lora_up.weight": ones(8, 2), "lora_unet_k.dora_scale": ones(8, 1)}
    tensors |= {"lora_te_k.lora_down.weight": ones(5, 8), "lora_te_k.lora_up.weight": ones(8, 5), "lora_te_k.alpha": ones()}
    save_file(tensors, tmp_path / "ink.safetensors")
    facts = _inspect(tmp_path / "ink.safetensors")
    assert facts["details"]["kinds"] == {"LoHa": 1, "LoKr": 1, "LoRA with DoRA": 1, "LoRA": 1}
    assert (facts["slots"], facts["adapters"]["ink"]["rank"]) == (4, 5)


def _pack(path: Path, **said: Any) -> AdapterManifest:
    tensors = {"a.lora_A": np.ones((4, 8), np.int16), "a.lora_B": np.ones((8, 4), np.int16)}
    made = AdapterManifest(
        name="ink",
        format_version=FORMAT_VERSION,
        rank=3,
        bits=16,
        size_bytes=0,
        sha256="",
        parents={"slots": "5" * 64, "profile": "7" * 64},
        **said,
    )
    return write_pack(path, made, tensors)


def test_a_pack(tmp_path: Path) -> None:
    said = _pack(tmp_path / "ink.qpack")
    facts = _inspect(tmp_path / "ink.qpack")
    assert (facts["kind"], facts["slots"], facts["profile_digest"], facts["slots_digest"]) == ("pack", 1, "7" * 64, "5" * 64)
    assert facts["adapters"] == {"ink": {"rank": 3, "bits": 16, "bytes": said.size_bytes}}


def test_a_pack_with_one_flipped_byte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ink.qpack"
    _pack(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = RUNNER.invoke(app, ["inspect", str(file), "--json"])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "tensors", "says"),
    [
        ("ink.bin", None, "a pickled file, which can run code"),
        ("ink.safetensors", None, "expected a whole safetensors file"),
        ("ink.safetensors", {"conv.weight": np.ones(3, np.float32)}, "1 tensors such as conv.weight"),
        ("ink.safetensors", {f"unet.{PATH}.oft_R": np.ones(3, np.float32)}, "OFT"),
    ],
)
def test_what_is_no_lora_is_one_clear_line(tmp_path: Path, name: str, tensors: dict[str, Any] | None, says: str) -> None:
    file = tmp_path / name
    if tensors is None:
        file.write_bytes(b"not this")
    else:
        save_file(tensors, file)
    done = RUNNER.invoke(app, ["inspect", str(file)])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_how_an_adapter_is_meant_to_be_run(tmp_path: Path) -> None:
    pair = {f"unet.{PATH}.lora_{side}.weight": np.ones(shape, np.float32) for side, shape in (("A", (2, 8)), ("B", (8, 2)))}
    save_file(pair, tmp_path / "ink.safetensors", {"modelspec.trigger_phrase": "in\nink,  inkstyle\x07"})
    assert _inspect(tmp_path / "ink.safetensors")["adapters"]["ink"]["defaults"] == {"trigger_words": "in ink, inkstyle"}
    _pack(tmp_path / "lcm.qpack", defaults=AdapterDefaults(sampler="lcm:4", guidance=1.0))
    assert _inspect(tmp_path / "lcm.qpack")["adapters"]["ink"]["defaults"] == {"sampler": "lcm:4", "guidance": 1.0}
    shown = RUNNER.invoke(app, ["inspect", str(tmp_path / "lcm.qpack")]).stdout
    assert ", sampler lcm:4, guidance 1" in shown


def test_people_read_lines(tmp_path: Path) -> None:
    _pack(tmp_path / "ink.qpack")
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "ink.qpack")])
    assert "adapter ink: rank 3, 16 bits, 128 B\n" in done.stdout


def test_the_largest_weight_is_said_and_never_rounded_up(tmp_path: Path) -> None:
    _pack(tmp_path / "ink.qpack", headroom=1.3199)
    assert _inspect(tmp_path / "ink.qpack")["adapters"]["ink"] == {"rank": 3, "bits": 16, "bytes": 128, "headroom": 1.3199}
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "ink.qpack")])
    assert "adapter ink: rank 3, 16 bits, 128 B, weights up to 1.31\n" in done.stdout


def test_normalised_slots_are_told_with_the_weights_that_were_tried(normalised_bundle: Path, tmp_path: Path) -> None:
    facts = _inspect(normalised_bundle)
    assert facts["details"]["slot_mode"] == "normalised"
    shown = RUNNER.invoke(app, ["inspect", str(normalised_bundle)]).stdout
    assert "slots 2, normalised\n" in shown
    assert ", any weight\n" in shown
    manifest = msgspec.structs.replace(normalised_manifest("ink", 2), headroom=4.0)
    write_pack(tmp_path / "ink.qpack", manifest, normalised_tensors(0, 2))
    assert _inspect(tmp_path / "ink.qpack")["slots"] == 2
    assert ", weights up to 4.00 tried\n" in RUNNER.invoke(app, ["inspect", str(tmp_path / "ink.qpack")]).stdout


def test_an_autoencoder_needs_a_base(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "a.safetensors"), "--vae", str(tmp_path)])
    assert (done.exit_code, "name it: --base MODEL" in done.stderr) == (2, True)


def _for_base(path: Path, base: Path, *more: str) -> Result:
    return RUNNER.invoke(app, ["inspect", str(path), "--base", str(base), *more])


def test_for_a_base_each_part_of_a_lora_is_told(model_dir: Path, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """LoRA in the U-Net, LoKr in the text encoder, a bias that no slot carries and a word: what was applied, how well, and what was not."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    draw, flat, text = np.random.default_rng(0), f"lora_unet_{layer.replace('.', '_')}", "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {
        f"{flat}.lora_down.weight": draw.standard_normal((4, 32)), f"{flat}.lora_up.weight": draw.standard_normal((32, 4)),
        f"{flat}.alpha": np.array(2.0), f"{text}.lokr_w1": draw.standard_normal((4, 4)), f"{text}.lokr_w2": draw.standard_normal((8, 4)),
        f"{text}.alpha": np.array(1.0), f"{flat}.diff_b": np.full(32, 0.25), "bundle_emb.cat.clip_l": draw.standard_normal((2, 16)),
    }  # fmt: skip
    file = tmp_path / "ink.safetensors"
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, file, {"ss_base_model_version": "sd_v1"})
    done = _for_base(file, model_dir, "--json")
    assert done.exit_code == 0, done.stderr
    details = json.loads(done.stdout)["details"]
    ours, theirs = details["parts"]["unet"], details["parts"]["text_encoder"]
    layers = sum(isinstance(module, torch.nn.Linear | torch.nn.Conv2d) for module in unet.modules())
    assert (ours["modules"], ours["layers"], ours["tensors"], ours["kinds"]) == (1, layers, 3, {"LoRA": 1})
    assert (ours["ranks"], ours["file_ranks"], ours["alphas"], ours["error"], ours["worst"]) == ([4, 4], [4, 4], [2.0, 2.0], 0.0, "")
    assert (theirs["modules"], theirs["kinds"], theirs["worst"]) == (1, {"LoKr": 1}, "text_encoder.encoder.layers.0.mlp.fc1")
    values = np.linalg.svd(np.kron(tensors[f"{text}.lokr_w1"], tensors[f"{text}.lokr_w2"]), compute_uv=False)
    rank = theirs["ranks"][1]
    assert theirs["error"] == pytest.approx(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()), abs=1e-5)
    assert (details["applied"], details["tensors"], details["words"], details["beside"]) == (6, 8, ["cat"], {"bias differences": 1})
    assert details["dialects"] == {"OneTrainer": 1, "LyCORIS": 2, "kohya": 5}
    assert (details["trained_on"]["family"], details["trained_on"]["prediction"]) == ("Stable Diffusion 1.x", "epsilon")
    assert "expected updates of weights alone, found 1 tensors of bias differences" in details["refusal"]
    notes = "\n".join(details["notes"])
    for said in ("predicts epsilon, by its metadata; this one predicts v_prediction", "largest value 0.25", "cat (2 vectors)"):
        assert said in notes
    lines = _for_base(file, model_dir).stdout
    assert f"U-Net: 1 of {layers} layers, LoRA 1, rank 4, alpha 2, change of weights as in the file\n" in lines
    assert "text encoder: 1 of 12 layers, LoKr 1, rank " in lines
    assert "quad build refuses it as it is: " in lines


def test_a_base_is_for_lora_files_of_that_base(model_dir: Path, tmp_path: Path) -> None:
    _pack(tmp_path / "ink.qpack")
    done = _for_base(tmp_path / "ink.qpack", model_dir)
    assert (done.exit_code, done.stdout) == (2, "")
    other = tmp_path / "other.safetensors"
    save_file({f"unet.{PATH}.lora_A.weight": np.ones((2, 8), np.float32), f"unet.{PATH}.lora_B.weight": np.ones((8, 2), np.float32)}, other)
    done = _for_base(other, model_dir)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "2 of 2 match nothing" in done.stderr


def test_a_directory_of_one_adapter_per_model(tmp_path: Path) -> None:
    for folder, path, rank in (("unet", PATH, 4), ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", 2)):
        (tmp_path / folder).mkdir()
        pair = {f"base_model.model.{path}.lora_{side}.weight": np.ones((rank, rank), np.float32) for side in "AB"}
        save_file(pair, tmp_path / folder / "adapter_model.safetensors")
    facts = _inspect(tmp_path)
    assert (facts["slots"], facts["details"]["kinds"], facts["details"]["dialects"]) == (2, {"LoRA": 2}, {"PEFT": 4})
    assert facts["adapters"][tmp_path.name]["rank"] == 4


def test_a_textual_inversion(tmp_path: Path) -> None:
    save_file({"<cat>": np.ones((3, 8), np.float16)}, tmp_path / "learned_embeds.safetensors")
    for place in (tmp_path, tmp_path / "learned_embeds.safetensors"):
        facts = _inspect(place)
        assert (facts["kind"], facts["adapters"]) == ("embedding", {})
        assert facts["details"] == {"words": ["<cat>"], "vectors": {"<cat>": [3, 8]}}
    assert "<cat>: 3 vectors of 8\n" in RUNNER.invoke(app, ["inspect", str(tmp_path)]).stdout
    save_file({"clip_l": np.ones((2, 8), np.float16), "clip_g": np.ones((2, 12), np.float16)}, tmp_path / "toy.safetensors")  # SDXL's
    assert _inspect(tmp_path / "toy.safetensors")["details"] == {"words": ["toy"], "vectors": {"toy": [2, 20]}}


def test_a_model_is_told_from_a_lora(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    save_file({"conv_in.weight": np.ones((4, 4), np.float32)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    done = RUNNER.invoke(app, ["inspect", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.endswith("expected a LoRA, found a whole model, by its model_index.json; give it as MODEL\n")
