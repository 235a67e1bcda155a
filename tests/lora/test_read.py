"""Every dialect gives the same matrices, and nothing is ever silently left out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.core.sampling import AdapterDefaults
from quad.lora.file import defaults_of
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.slots.network import slot_network

LoraFile = Callable[..., Path]
MakeTensors = Callable[..., dict[str, Tensor]]
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def same(a: FloatAdapter, b: FloatAdapter) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        np.allclose(a.weights[k].a, b.weights[k].a) and np.allclose(a.weights[k].b, b.weights[k].b, rtol=1e-6) for k in a.weights
    )


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def q_pair(rank: int = 4, inputs: int = 32, outputs: int = 32) -> dict[str, Tensor]:
    return {f"unet.{Q}.lora_A.weight": torch.ones(rank, inputs), f"unet.{Q}.lora_B.weight": torch.ones(outputs, rank)}


# -- dialects ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["attention", "convolutions"])
def test_kohya_spelling_gives_the_same_adapter(kind: str, unet: UNet2DConditionModel, lora_tensors: MakeTensors, tmp_path: Path) -> None:
    plain = lora_tensors(kind, (4, 8))
    kohya: dict[str, Tensor] = {}
    for key, tensor in plain.items():
        path, _, role = key.removesuffix(".weight").rpartition(".")
        flat = "lora_unet_" + path.replace(".", "_")
        kohya[f"{flat}.{'lora_down' if role == 'lora_A' else 'lora_up'}.weight"] = tensor
        kohya[f"{flat}.alpha"] = torch.tensor(2.0)
    scaled = {k: v * 2 / v.shape[1] if "lora_B" in k else v for k, v in plain.items()}
    adapter = read_adapter("k", save(tmp_path / "kohya.safetensors", kohya), unet)
    assert same(adapter, read_adapter("d", save(tmp_path / "plain.safetensors", scaled), unet))


def test_old_diffusers_spelling_gives_the_same_adapter(unet: UNet2DConditionModel, lora_tensors: MakeTensors, tmp_path: Path) -> None:
    plain = lora_tensors("attention", (4,))
    old = {}
    for key, tensor in plain.items():
        direction = "down" if "lora_A" in key else "up"
        parent, _, leaf = key.removesuffix(".weight").rpartition(".")[0].replace(".to_out.0", ".to_out").rpartition(".")
        old[f"unet.{parent}.processor.{leaf}_lora.{direction}.weight"] = tensor
    newer = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in plain.items()}
    want = read_adapter("d", save(tmp_path / "plain.safetensors", plain), unet)
    assert same(read_adapter("o", save(tmp_path / "old.safetensors", old), unet), want)
    assert same(read_adapter("n", save(tmp_path / "newer.safetensors", newer), unet), want)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_directory_runs_as_in_peft(rslora: bool, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["to_q", "conv1", "ff.net.2"],
        rank_pattern={"to_q": 8},
        alpha_pattern={"conv1": 3},
    )
    torch.manual_seed(5)
    model = get_peft_model(copy.deepcopy(unet), config).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(tmp_path / "peft")
    adapter = read_adapter("p", tmp_path / "peft", unet)
    network, table = slot_network(unet, [adapter])
    x = (torch.randn(1, 9, 8, 8), torch.tensor([10.0]), torch.randn(1, 6, 16))
    slots = {n: torch.from_numpy(v) for n, v in slot_inputs(adapter, table).items()}
    with torch.no_grad():
        want = model(*x).sample
        assert (network(*x, slots) - want).abs().max() <= 1e-4 * want.square().mean().sqrt()
    assert adapter.rank == 8


@pytest.mark.parametrize(("extra", "factor"), [({}, 12 / 4), ({"use_rslora": True}, 12 / 2), ({"alpha_pattern": {"attn1.to_q": 2}}, 2 / 4)])
def test_metadata_rules_the_scale(extra: dict[str, object], factor: float, unet: UNet2DConditionModel, lora_file: LoraFile) -> None:
    metadata = {f"unet.{key}": value for key, value in {"r": 4, "lora_alpha": 12, **extra}.items()}
    adapter = read_adapter("m", lora_file(tensors=q_pair(), metadata=metadata), unet)
    assert np.allclose(adapter.weights[Q].b, factor)
    assert np.all(adapter.weights[Q].a == 1)


def test_without_any_alpha_the_scale_is_one(unet: UNet2DConditionModel, lora_file: LoraFile) -> None:
    assert np.all(read_adapter("m", lora_file(tensors=q_pair()), unet).weights[Q].b == 1)


def test_half_precision_files_and_1x1_spellings(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    conv = "mid_block.attentions.0.proj_in"
    tensors = {
        f"{conv}.lora_A.weight": torch.ones(2, 32, dtype=torch.bfloat16),
        f"{conv}.lora_B.weight": torch.ones(32, 2, dtype=torch.bfloat16),
    }
    pair = read_adapter("h", save(tmp_path / "h.safetensors", tensors), unet).weights[conv]
    assert (pair.a.shape, pair.b.shape) == ((2, 32, 1, 1), (32, 2, 1, 1))
    assert pair.a.dtype == pair.b.dtype == np.float32


# -- refusals ---------------------------------------------------------------------------------------------------------------


def refused(error: type[QuadError], text: str, path: Path, unet: UNet2DConditionModel) -> None:
    with pytest.raises(error) as caught:
        read_adapter("ink", path, unet)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"unet.{Q}.oft_R.weight", "OFT"),
        (f"unet.{Q}.ia3_l", "IA3"),
        (f"unet.{Q}.lora_B.bias", "LoRA with bias"),
        (f"unet.{Q}.vera_lambda_b", "VeRA"),
        ("lora_unet_conv_in.a1.weight", "GLoRA"),
        ("text_encoder.text_model.embeddings.lora_embedding_A", "embedding LoRA"),
        ("style.string_to_param.*", "textual inversion"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text-encoder LoRA"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text-encoder LoRA"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text-encoder LoRA"),
        ("text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "text-encoder LoRA"),
        ("encoder.layers.0.mlp.fc1.lora_A.weight", "text-encoder LoRA"),
    ],
)
def test_other_kinds_are_refused_by_name(key: str, kind: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {**q_pair(), key: torch.ones(4, 4)})
    refused(UnsupportedError, f"found {kind};", path, unet)
    refused(UnsupportedError, f"key {key!r}", path, unet)


@pytest.mark.parametrize(("key", "kind"), [("lycoris_conv_in.on_input", "IA3"), ("base_model.model.conv_in.shira_indices", "SHiRA")])
def test_another_kind_is_told_before_a_type_that_only_it_has(key: str, kind: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {key: torch.ones(4, dtype=torch.int64)})
    refused(UnsupportedError, f"found {kind};", path, unet)


def test_keys_that_match_nothing_are_listed(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    stray = {f"unet.other.{i}.lora_A.weight": torch.ones(4, 4) for i in range(10)}
    path = save(tmp_path / "x.safetensors", {**q_pair(), **stray})
    refused(InputError, "10 of 12 match nothing: unet.other.0.lora_A.weight, unet.other.1", path, unet)
    refused(InputError, "and 2 more; pass --allow-unused-keys", path, unet)
    adapter = read_adapter("ink", path, unet, allow_unused=True)
    assert adapter.weights.keys() == {Q}
    assert adapter.notes[-1].startswith("10 keys that match nothing left out, largest value 1: unet.other.0.lora_A.weight, ")
    nothing = save(tmp_path / "y.safetensors", stray)
    with pytest.raises(InputError, match=r"10 of 10 match nothing: .*; is it for another base model"):
        read_adapter("ink", nothing, unet, allow_unused=True)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickled_files_are_refused_by_name(suffix: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / f"adapter_model{suffix}"
    path.write_bytes(b"\x80\x04.")
    refused(InputError, f"{path}: expected a .safetensors file, found a pickled file, which can run code", path, unet)
    refused(InputError, f"{path}: expected a .safetensors file, found a pickled file", tmp_path, unet)


def test_missing_and_truncated_files(unet: UNet2DConditionModel, lora_file: LoraFile, tmp_path: Path) -> None:
    refused(InputError, "no such file; check the path", tmp_path / "none.safetensors", unet)
    refused(InputError, "no such file; fetch it and give the file, or give its hub id", Path("https://place.test/ink.safetensors"), unet)
    (tmp_path / "empty").mkdir()
    refused(InputError, "expected pytorch_lora_weights.safetensors or adapter_model.safetensors, found neither", tmp_path / "empty", unet)
    content = lora_file().read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:size])
        refused(InputError, "expected a whole safetensors file", cut, unet)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({f"unet.{Q}.lora_A.weight": torch.ones(4, 17)}, f"{Q}.lora_A: expected (r, 32), found (4, 17); this LoRA was trained for another"),
        ({f"unet.{Q}.lora_B.weight": torch.ones(31, 4)}, f"{Q}.lora_B: expected (32, 4), found (31, 4)"),
        ({f"unet.{Q}.lora_B.weight": torch.ones(32, 3)}, f"{Q}.lora_B: expected (32, 4), found (32, 3)"),
        ({f"unet.{Q}.lora_A.weight": torch.ones(0, 32)}, f"{Q}.lora_A: expected rank >= 1, found rank 0"),
        ({f"unet.{Q}.lora_A.weight": torch.full((4, 32), torch.nan)}, f"{Q}.lora_A: expected finite numbers, found NaN or Inf"),
        ({f"unet.{Q}.lora_B.weight": torch.full((32, 4), torch.inf)}, f"{Q}.lora_B: expected finite numbers, found NaN or Inf"),
        ({f"unet.{Q}.alpha": torch.tensor(torch.nan)}, "expected a finite alpha, found nan"),
        ({f"unet.{Q}.alpha": torch.ones(3)}, "alpha: expected one number, found (3,)"),
    ],
)
def test_wrong_tensors_are_refused(change: dict[str, Tensor], text: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    refused(InputError, text, save(tmp_path / "x.safetensors", {**q_pair(), **change}), unet)


def test_half_a_pair_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {f"unet.{Q}.lora_A.weight": torch.ones(4, 32)})
    refused(InputError, f"{Q}.lora_B: expected all tensors of the module, found only down", path, unet)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({"r": 4, "peft_type": "OFT"}, UnsupportedError, "expected LoRA, LoHa or LoKr, found 'OFT' (peft_type)"),
        ({"r": 4, "alora_invocation_tokens": [3, 4]}, UnsupportedError, "found alora_invocation_tokens"),
        ({"r": 4, "lora_bias": True}, UnsupportedError, "found lora_bias"),
        ({"r": 4, "layer_replication": [[0, 4]]}, UnsupportedError, "found layer_replication"),
        ({"r": 4, "init_lora_weights": "pissa_niter_4"}, UnsupportedError, "expected an adapter of the unchanged base"),
        ({"r": 8, "lora_alpha": 8}, InputError, "expected rank 8 (the adapter's config), found rank 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    config: dict[str, object], error: type[QuadError], text: str, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    save(tmp_path / "adapter_model.safetensors", {"base_model.model." + k.removeprefix("unet."): v for k, v in q_pair().items()})
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refused(error, text, tmp_path, unet)


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("ADALORA", ("lora_A", "lora_B", "lora_E")),
        ("HRA", ("hra_u",)),
        ("C3A", ("c3a_kernel",)),
        ("DELORA", ("delora_A", "delora_B", "delora_lambda")),
        ("LN_TUNING", ("weight", "bias")),
        ("LORA_TO_COME", ("lora_A.weight", "lora_B.weight", "alpha")),  # nothing in it needs the config but its kind
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["directory", "file"])
def test_another_kind_of_peft_is_refused_by_its_name(
    kind: str, roles: Sequence[str], whole: bool, unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    file = save(tmp_path / "adapter_model.safetensors", {f"base_model.model.{Q}.{role}": torch.ones(4, 4) for role in roles})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 4}))
    refused(UnsupportedError, f"expected LoRA, LoHa or LoKr, found '{kind}' (peft_type)", tmp_path if whole else file, unet)


def test_peft_keys_without_their_config_are_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    save(tmp_path / "adapter_model.safetensors", {"base_model.model." + k.removeprefix("unet."): v for k, v in q_pair().items()})
    refused(InputError, "expected adapter_config.json beside it", tmp_path, unet)
    (tmp_path / "adapter_config.json").write_text("{")
    refused(InputError, "expected the adapter's config in JSON", tmp_path, unet)


def test_a_file_says_how_it_is_meant_to_be_run(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    file = tmp_path / "lcm.safetensors"
    save_file(q_pair(), file, {"quad_sampler": " lcm:4\n", "quad_guidance": "1"})
    own = AdapterDefaults(sampler="lcm:4", guidance=1.0)
    assert defaults_of(file) == own
    assert read_adapter("m", file, unet).defaults(None) == own
    stated = AdapterDefaults(guidance=2.0, trigger_words="ink")
    assert stated.over(own) == AdapterDefaults(sampler="lcm:4", guidance=2.0, trigger_words="ink")
    for number in ("much", "nan"):
        save_file(q_pair(), file, {"quad_guidance": number})
        refused(InputError, f"expected a finite number, found '{number}'", file, unet)


def test_trigger_words_of_the_trainer_are_kept_unless_others_are_said(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    file = tmp_path / "ink.safetensors"
    save_file(q_pair(), file, {"modelspec.trigger_phrase": " in\nink "})
    adapter = read_adapter("m", file, unet)
    assert adapter.defaults(None) == AdapterDefaults(trigger_words="in ink")
    said = AdapterDefaults(sampler="lcm:4", trigger_words="pencil")
    assert adapter.defaults(said) == said
    save_file(q_pair(), file)
    assert read_adapter("m", file, unet).defaults(None) is msgspec.UNSET
