"""LoHa, LoKr, DoRA, Tucker and weight differences: what two matrices keep of what PEFT, or the kind's own definition, adds to a weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from quad.core.errors import InputError
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.low_rank import CONVERTED_ENERGY
from quad.lora.read import FloatAdapter, LowRank, RankLimits
from quad.model.adapters import read_adapter
from quad.model.slots.network import slot_network

Inputs = tuple[Tensor, Tensor, Tensor]
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV, POINT = "mid_block.resnets.0.conv1", "mid_block.attentions.0.proj_in"
PLACES = (LINEAR, CONV, POINT)
WIDTH = 32
UP_TO_ANY = RankLimits(max_rank=WIDTH * 9)


def product(pair: LowRank) -> NDArray[np.float64]:
    return (pair.b.reshape(pair.b.shape[0], -1).astype(np.float64) @ pair.a.reshape(pair.rank, -1)).astype(np.float64)


def kept(delta: NDArray[Any], pair: LowRank) -> float:
    """The share of a difference's energy that two matrices hold, measured, not reported."""
    flat = delta.reshape(delta.shape[0], -1)
    return float(1 - ((flat - product(pair)) ** 2).sum() / (flat**2).sum())


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def noisy(*shape: int, seed: int = 0, size: float = 0.3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def kohya(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def read(tmp_path: Path, unet: nn.Module, tensors: dict[str, Tensor], limits: RankLimits | None = None) -> FloatAdapter:
    return read_adapter("a", save(tmp_path / "a.safetensors", tensors), unet, limits=limits)


# -- against PEFT's own layers ----------------------------------------------------------------------------------------------

CONFIGS: dict[str, PeftConfig] = {
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=list(PLACES), rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 7}, init_weights=False),
    "LoHa, Tucker": LoHaConfig(r=3, alpha=5, target_modules=list(PLACES), use_effective_conv2d=True, init_weights=False),
    "LoKr": LoKrConfig(r=3, alpha=5, target_modules=list(PLACES), rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 7}, init_weights=False),
    "LoKr, both cut": LoKrConfig(r=1, alpha=5, target_modules=list(PLACES), decompose_both=True, init_weights=False),
    "LoKr, Tucker": LoKrConfig(r=2, alpha=5, target_modules=list(PLACES), use_effective_conv2d=True, init_weights=False),
    "LoKr, both whole": LoKrConfig(r=64, alpha=5, target_modules=list(PLACES), init_weights=False),
    "LoKr by 4": LoKrConfig(r=2, alpha=5, target_modules=list(PLACES), decompose_factor=4, init_weights=False),
}


@pytest.mark.parametrize("limits", [None, UP_TO_ANY])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_peft_directory_of_another_kind(kind: str, limits: RankLimits | None, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = get_peft_model(copy.deepcopy(unet), CONFIGS[kind]).eval()
    model.save_pretrained(tmp_path / "peft")
    adapter = read_adapter("a", tmp_path / "peft", unet, limits=limits)
    assert adapter.weights.keys() == set(PLACES)
    lost, whole = 0.0, 0.0
    for path in PLACES:
        layer: Any = model.get_submodule(f"base_model.model.{path}")
        delta = layer.get_delta_weight("default").detach().double().numpy()
        share = kept(delta, adapter.weights[path])
        assert share == pytest.approx(adapter.energy[path], abs=1e-6)
        assert share >= CONVERTED_ENERGY - 1e-6
        lost, whole = lost + (1 - share) * (delta**2).sum(), whole + (delta**2).sum()
    assert kind.partition(",")[0].partition(" ")[0] in adapter.notes[0]
    assert adapter.error == pytest.approx((lost / whole) ** 0.5, abs=1e-5)
    lossy = [f"its change of weights is off by {adapter.error:.2%}, "] if adapter.error > 1e-5 else []
    assert [note[: len(text)] for note, text in zip(adapter.notes[1:], lossy, strict=True)] == lossy


def test_dora_of_peft(unet: UNet2DConditionModel, inputs: Inputs, tmp_path: Path) -> None:
    """The whole network, at a rank that leaves nothing out: the magnitude is one norm per output, for kernels too."""
    config = LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=list(PLACES))
    torch.manual_seed(8)
    model = get_peft_model(copy.deepcopy(unet), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
        if "magnitude" in name:
            parameter.data *= 1 + 0.5 * torch.rand_like(parameter)
    model.save_pretrained(tmp_path / "peft")
    adapter = read_adapter("a", tmp_path / "peft", unet, limits=UP_TO_ANY)
    network, table = slot_network(unet, [adapter])
    slots = {name: torch.from_numpy(value) for name, value in slot_inputs(adapter, table).items()}
    merged = copy.deepcopy(model).merge_and_unload()
    for path in PLACES:
        delta = (merged.get_submodule(path).weight - unet.get_submodule(path).weight).detach().numpy()
        assert kept(delta, adapter.weights[path]) == pytest.approx(adapter.energy[path], abs=1e-5)
    with torch.no_grad():
        expected, base, slotted = model(*inputs).sample, unet(*inputs).sample, network(*inputs, slots)
    # The smallest rank that keeps 99.9 % leaves 3 % of the amplitude out.
    assert (slotted - expected).norm() <= 0.06 * (expected - base).norm()
    assert (expected - base).norm() >= 1e-2 * expected.norm()


# -- against the definitions ------------------------------------------------------------------------------------------------


def test_tucker_is_one_kernel_exactly(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """LoCon's three convolutions in a row, 1x1, the layer's own kernel and stride, 1x1, are two."""
    path, rank, x = "down_blocks.0.downsamplers.0.conv", 5, noisy(2, 16, 8, 8)
    down, mid, up = noisy(rank, 16, 1, 1, seed=1), noisy(rank, rank, 3, 3, seed=2), noisy(16, rank, 1, 1, seed=3)
    name = kohya(path)
    tensors = {f"{name}.lora_{role}.weight": value for role, value in (("down", down), ("mid", mid), ("up", up))}
    adapter = read(tmp_path, unet, {**tensors, f"{name}.alpha": torch.tensor(2.0)})
    pair = adapter.weights[path]
    expected = functional.conv2d(functional.conv2d(functional.conv2d(x, down), mid, stride=2, padding=1), up) * (2.0 / rank)
    output = functional.conv2d(functional.conv2d(x, torch.from_numpy(pair.a), stride=2, padding=1), torch.from_numpy(pair.b))
    assert torch.allclose(output, expected, atol=1e-5 * float(expected.abs().max()))
    assert pair.rank == rank
    assert not adapter.energy


def test_loha_in_lycoris_files(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    w = {f"hada_w{i}_{side}": noisy(*((WIDTH, 3) if side == "a" else (3, WIDTH)), seed=i) for i in (1, 2) for side in "ab"}
    tensors = {f"{kohya(LINEAR)}.{role}": value for role, value in w.items()} | {f"{kohya(LINEAR)}.alpha": torch.tensor(1.5)}
    adapter = read(tmp_path, unet, tensors, UP_TO_ANY)
    delta = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"]) * (1.5 / 3)
    assert kept(delta.numpy(), adapter.weights[LINEAR]) == pytest.approx(adapter.energy[LINEAR], abs=1e-6)
    assert adapter.rank <= 9


@pytest.mark.parametrize("written_out", [True, False])
def test_lokr_in_lycoris_files_has_no_scale_where_nothing_has_a_rank(written_out: bool, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    first, left, right = noisy(4, 4, seed=1), noisy(8, 2, seed=2), noisy(2, 8, seed=3)
    second = {"lokr_w2": left @ right} if written_out else {"lokr_w2_a": left, "lokr_w2_b": right}
    tensors = {f"{kohya(LINEAR)}.{role}": value for role, value in {"lokr_w1": first, **second, "alpha": torch.tensor(1.0)}.items()}
    adapter = read(tmp_path, unet, tensors, UP_TO_ANY)
    delta = torch.kron(first, left @ right) * (1.0 if written_out else 1.0 / 2)
    assert kept(delta.numpy(), adapter.weights[LINEAR]) == pytest.approx(adapter.energy[LINEAR], abs=1e-6)


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("per", ["output", "input"])
def test_dora_scale_of_lycoris_is_per_output_or_per_input(per: str, path: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    """A row of norms, `(1, in, ...)`, is one per input channel over all outputs; a column is one per output. The layer is square."""
    weight = unet.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    assert weight.shape[:2] == (WIDTH, WIDTH)
    tail = weight.shape[2:]
    down, up = noisy(4, *weight.shape[1:], seed=1), noisy(WIDTH, 4, *(1,) * len(tail), seed=2)
    other = tuple(axis for axis in range(weight.ndim) if axis != (0 if per == "output" else 1))
    norms = weight.square().sum(other, keepdim=True).sqrt() * (1 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(3))).reshape(
        [WIDTH if axis not in other else 1 for axis in range(weight.ndim)]
    )
    name = kohya(path)
    tensors = {
        f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0), f"{name}.dora_scale": norms,
    }  # fmt: skip
    adapter = read(tmp_path, unet, tensors, UP_TO_ANY)
    changed = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * (2.0 / 4)
    delta = changed * norms / changed.square().sum(other, keepdim=True).sqrt() - weight
    assert kept(delta.numpy(), adapter.weights[path]) == pytest.approx(adapter.energy[path], abs=1e-5)
    assert "with DoRA" in adapter.notes[0]


def test_dora_over_another_kind(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    first, second, norms = noisy(4, 4, seed=1), noisy(8, 8, seed=2), torch.rand(WIDTH, 1)
    roles = {"lokr_w1": first, "lokr_w2": second, "dora_scale": norms}
    adapter = read(tmp_path, unet, {f"{kohya(LINEAR)}.{role}": value for role, value in roles.items()}, UP_TO_ANY)
    weight = unet.get_submodule(LINEAR).weight
    changed = weight + torch.kron(first, second)
    delta = changed * norms / changed.norm(dim=1, keepdim=True) - weight
    assert kept(delta.numpy(), adapter.weights[LINEAR]) == pytest.approx(adapter.energy[LINEAR], abs=1e-5)


@pytest.mark.parametrize("path", PLACES)
def test_weight_differences(path: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    weight = unet.get_submodule(path).weight
    difference = noisy(*weight.shape)
    adapter = read(tmp_path, unet, {f"{kohya(path)}.diff": difference}, RankLimits(16, 0.1))
    assert adapter.weights[path].rank == 16
    assert kept(difference.numpy(), adapter.weights[path]) == pytest.approx(adapter.energy[path], abs=1e-6)
    assert adapter.energy[path] < 0.95
    with pytest.raises(InputError, match=rf"expected 0.9 of each module's energy at its rank, found {path} 0\.\d+; raise --max-rank"):
        read(tmp_path, unet, {f"{kohya(path)}.diff": difference}, RankLimits(2))


def test_an_update_that_is_zero_stays_zero(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    w = {f"hada_w{i}_{side}": torch.zeros(*((WIDTH, 3) if side == "a" else (3, WIDTH))) for i in (1, 2) for side in "ab"}
    adapter = read(tmp_path, unet, {f"{kohya(LINEAR)}.{role}": value for role, value in w.items()})
    assert not product(adapter.weights[LINEAR]).any()
    assert (adapter.rank, adapter.energy[LINEAR]) == (1, 1.0)
