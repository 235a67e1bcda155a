"""Law 2 for every dialect: the slotted network with a file is diffusers, or PEFT, with the same file loaded by its own loader."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.slots.network import slot_network
from tests.model import dialects
from tests.model.dialects import TARGETS, TEXT_SPELLINGS, UNET_SPELLINGS, Tensors, strong_lora

Inputs = tuple[Tensor, Tensor, Tensor]
MakeUnet = Callable[[bool], UNet2DConditionModel]
UNET_TARGETS = [name for name in TARGETS if name != "text"]
# Old diffusers had LoRA in attention alone.
CASES = [(s, t) for s in UNET_SPELLINGS for t in UNET_TARGETS if s != "old diffusers" or t == "attention"]
# Only the projections around a transformer are other layers with `use_linear_projection`.
SHAPED = [
    pytest.param(s, t, linear, marks=[pytest.mark.soak] if linear and t != "projections" else [])
    for s, t in CASES
    for linear in (False, True)
]


def new_unet(linear: bool) -> UNet2DConditionModel:
    """Stable Diffusion's blocks at a small width: a down block without attention at the bottom, an up block without at the top."""
    torch.manual_seed(11)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(8, 16, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4, use_linear_projection=linear,
    )  # fmt: skip
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sd_unet() -> MakeUnet:
    unets = {linear: new_unet(linear) for linear in (False, True)}
    return lambda linear: unets[linear]


@pytest.fixture(scope="module")
def sd_inputs() -> Inputs:
    """sample `(1, 4, 8, 8)`, timestep `(1,)`, text `(1, 5, 12)`."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 8, 8, generator=draw), torch.tensor([437.0]), torch.randn(1, 5, 12, generator=draw)


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    torch.manual_seed(12)
    config = CLIPTextConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CLIPTextModel(config).eval().requires_grad_(False)


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def with_diffusers(unet: UNet2DConditionModel, file: Path) -> UNet2DConditionModel:
    """A copy with the file loaded as diffusers' Stable Diffusion pipeline loads it."""
    unet = copy.deepcopy(unet)
    loaded = Loader.lora_state_dict(file.parent, weight_name=file.name, unet_config=unet.config, return_lora_metadata=True)
    Loader.load_lora_into_unet(loaded[0], loaded[1], unet, metadata=loaded[2])
    return unet


def require_same(adapter: FloatAdapter, unet: UNet2DConditionModel, reference: nn.Module, inputs: Inputs) -> None:
    """The bar of law 2, with an effect so large that a wrong scale or a module left out cannot pass it."""
    network, table = slot_network(unet, [adapter])
    slots = {name: torch.from_numpy(value) for name, value in slot_inputs(adapter, table).items()}
    with torch.no_grad():
        expected, base, slotted = reference(*inputs).sample, unet(*inputs).sample, network(*inputs, slots)
    rms = expected.square().mean().sqrt()
    assert (expected - base).square().mean().sqrt() >= 1e-2 * rms
    assert (slotted - expected).abs().max() <= 1e-4 * rms


@pytest.mark.parametrize(("spelling", "target", "linear"), SHAPED)
def test_law_2_in_every_dialect(spelling: str, target: str, linear: bool, sd_unet: MakeUnet, sd_inputs: Inputs, tmp_path: Path) -> None:
    unet = sd_unet(linear)
    plain = strong_lora(unet, TARGETS[target])
    if spelling == "kohya, original blocks":  # diffusers takes the upsampler of a block without attention for an attention
        plain = {key: value for key, value in plain.items() if not key.startswith("up_blocks.0.upsamplers")}
    file = save(tmp_path / "pytorch_lora_weights.safetensors", UNET_SPELLINGS[spelling](plain, unet))
    require_same(read_adapter("a", file, unet), unet, with_diffusers(unet, file), sd_inputs)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("target", UNET_TARGETS)
def test_law_2_of_a_peft_directory(rslora: bool, target: str, sd_unet: MakeUnet, sd_inputs: Inputs, tmp_path: Path) -> None:
    unet, (first, *_, last) = sd_unet(False), TARGETS[target]
    expressions = {"mid_block.*to_q": 11, r"down_blocks\.(0|1)\..*to_k": 13} if target == "attention" else {}
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=list(TARGETS[target]), rank_pattern={first: 7},
        alpha_pattern={last: 5, **expressions},
    )  # fmt: skip
    model = strong_peft(get_peft_model(copy.deepcopy(unet), config), 0.5)
    model.save_pretrained(tmp_path / "peft")
    loaded = PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path / "peft").eval()
    adapter = read_adapter("a", tmp_path / "peft", unet)
    assert adapter.rank == 7
    require_same(adapter, unet, loaded, sd_inputs)


def strong_peft(model: Any, size: float) -> Any:
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=size / parameter.shape[1])
    return model.eval()


def merged(text_encoder: CLIPTextModel, load: Callable[[CLIPTextModel], None]) -> dict[str, np.ndarray[Any, Any]]:
    """Module path to what an adapter adds to the weight, as the library itself merges it."""
    model = copy.deepcopy(text_encoder)
    load(model)
    changed = {}
    for path, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            (name,) = module.scaling
            changed[path] = module.get_delta_weight(name).detach().numpy()
    return changed


def require_same_text(adapter: FloatAdapter, want: dict[str, np.ndarray[Any, Any]], text_encoder: CLIPTextModel) -> None:
    assert adapter.weights.keys() == {f"text_encoder.{path}" for path in want}
    weights = dict(text_encoder.named_parameters())
    for path, delta in want.items():
        pair = adapter.weights[f"text_encoder.{path}"]
        assert np.linalg.norm(delta) >= 1e-2 * weights[f"{path}.weight"].norm()
        assert np.abs(pair.b @ pair.a - delta).max() <= 1e-5 * np.abs(delta).max()


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_text_encoder_in_every_dialect(spelling: str, sd_unet: MakeUnet, text_encoder: CLIPTextModel, tmp_path: Path) -> None:
    tensors = TEXT_SPELLINGS[spelling](strong_lora(text_encoder, TARGETS["text"]), text_encoder)
    file = save(tmp_path / "pytorch_lora_weights.safetensors", tensors)

    def load(model: CLIPTextModel) -> None:
        loaded = Loader.lora_state_dict(file.parent, weight_name=file.name, return_lora_metadata=True)
        Loader.load_lora_into_text_encoder(loaded[0], loaded[1], model, metadata=loaded[2])

    want = merged(text_encoder, load)
    assert len(want) == 12
    require_same_text(read_adapter("a", file, sd_unet(False), text_encoder=text_encoder), want, text_encoder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
def test_text_encoder_of_a_peft_directory(sd_unet: MakeUnet, text_encoder: CLIPTextModel, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "fc2"], rank_pattern={"fc2": 2}, alpha_pattern={"layers.1.mlp.fc2": 9})
    strong_peft(get_peft_model(copy.deepcopy(text_encoder), config), 0.5).save_pretrained(tmp_path / "peft")
    want = {
        path.removeprefix("base_model.model."): delta
        for path, delta in merged(text_encoder, lambda model: PeftModel.from_pretrained(model, tmp_path / "peft")).items()
    }
    assert len(want) == 4
    require_same_text(read_adapter("a", tmp_path / "peft", sd_unet(False), text_encoder=text_encoder), want, text_encoder)


def test_both_models_in_one_file_with_their_own_scales(
    sd_unet: MakeUnet, text_encoder: CLIPTextModel, sd_inputs: Inputs, tmp_path: Path
) -> None:
    """diffusers' save_lora_weights packs each model's config under that model's name."""
    from peft.utils import get_peft_model_state_dict

    unet = sd_unet(False)
    configs = {
        "unet": LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "conv1"]),
        "text_encoder": LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "fc1"]),
    }
    models = {"unet": copy.deepcopy(unet), "text_encoder": copy.deepcopy(text_encoder)}
    layers = {}
    for name, model in models.items():
        model.add_adapter(configs[name])
        layers[name] = get_peft_model_state_dict(strong_peft(model, 1.0))
    Loader.save_lora_weights(
        tmp_path, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"],
        unet_lora_adapter_metadata=configs["unet"].to_dict(), text_encoder_lora_adapter_metadata=configs["text_encoder"].to_dict(),
    )  # fmt: skip
    adapter = read_adapter("a", tmp_path, unet, text_encoder=text_encoder)
    want = {
        p: m.get_delta_weight("default").detach().numpy()
        for p, m in models["text_encoder"].named_modules()
        if hasattr(m, "get_delta_weight")
    }
    of_text = {path: pair for path, pair in adapter.weights.items() if path.startswith("text_encoder.")}
    of_unet = {path: pair for path, pair in adapter.weights.items() if path not in of_text}
    require_same_text(FloatAdapter(name="a", weights=of_text, rank=3, digest=""), want, text_encoder)
    require_same(FloatAdapter(name="a", weights=of_unet, rank=4, digest=""), unet, models["unet"], sd_inputs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
def test_a_directory_of_a_peft_directory_per_model(sd_unet: MakeUnet, text_encoder: CLIPTextModel, tmp_path: Path) -> None:
    unet = sd_unet(False)
    parts = {"unet": (unet, ["to_q"], 2), "text_encoder": (text_encoder, ["q_proj"], 10)}
    for name, (model, targets, alpha) in parts.items():
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=targets)
        strong_peft(get_peft_model(copy.deepcopy(model), config), 1.0).save_pretrained(tmp_path / name)
    both = read_adapter("a", tmp_path, unet, text_encoder=text_encoder)
    alone = [read_adapter("a", tmp_path / name, unet, text_encoder=text_encoder) for name in parts]
    assert both.weights.keys() == alone[0].weights.keys() | alone[1].weights.keys()
    for part in alone:
        assert part.weights
        for path, pair in part.weights.items():
            assert np.array_equal(pair.b, both.weights[path].b)
    assert len({both.digest, alone[0].digest, alone[1].digest}) == 3


@pytest.mark.parametrize("spelling", dialects.OTHER_UNET_SPELLINGS)
def test_spellings_that_diffusers_does_not_read_mean_what_its_own_means(spelling: str, sd_unet: MakeUnet, tmp_path: Path) -> None:
    unet = sd_unet(False)
    targets = TARGETS["attention"] if "old" in spelling else sum((TARGETS[name] for name in UNET_TARGETS), ())
    plain = strong_lora(unet, targets)
    tensors = dialects.OTHER_UNET_SPELLINGS[spelling](plain, unet)
    adapter = read_adapter("a", save(tmp_path / "x" / "a.safetensors", tensors), unet)
    reference = read_adapter("a", save(tmp_path / "y" / "a.safetensors", dialects.diffusers(plain, unet)), unet)
    assert adapter.weights.keys() == reference.weights.keys()
    for path, pair in reference.weights.items():
        scale = np.float32(dialects.ALPHA / pair.rank) if spelling == "LyCORIS" else np.float32(1)
        assert np.array_equal(adapter.weights[path].a, pair.a)
        assert np.allclose(adapter.weights[path].b, pair.b * scale, rtol=1e-6)


def test_lcm_lora_s_layout(sd_unet: MakeUnet, sd_inputs: Inputs, tmp_path: Path) -> None:
    """LCM-LoRA for SD1.5: kohya's spelling in half precision, on every layer of every block, 3x3 kernels and strides with it."""
    unet = sd_unet(False)
    ends = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut",
            "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")  # fmt: skip
    half = {key: value.half() for key, value in dialects.kohya(strong_lora(unet, ends, (8,)), unet).items()}
    file = save(tmp_path / "pytorch_lora_weights.safetensors", half)
    adapter = read_adapter("lcm", file, unet)
    assert {"down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"} <= adapter.weights.keys()
    require_same(adapter, unet, with_diffusers(unet, file).float(), sd_inputs)
