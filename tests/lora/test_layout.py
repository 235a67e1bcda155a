"""A LoRA read by a bundle's slots is the LoRA read by the model, bit for bit; what has no slot, or needs weights, is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quad.core.errors import CompatibilityError, InputError, UnsupportedError
from quad.core.slots import TEXT_ENCODER, UNET, SlotTable
from quad.lora.layout import NetworkLayout, bundle_layouts
from quad.lora.module_names import original_names
from quad.lora.read import FloatAdapter, read_lora
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from quad.model.slots.network import slot_network, slot_networks
from tests.small_model import adapter_files, base

__all__ = ["adapter_files", "base"]  # fixtures


def layers(base: Base) -> dict[str, list[str]]:
    """Paths of all layers, as a profile has them."""
    kinds = torch.nn.Linear | torch.nn.Conv2d
    unet = [path for path, module in base.unet.named_modules() if isinstance(module, kinds)]
    text = [f"text_encoder.{path}" for path, module in base.text_encoder.named_modules() if isinstance(module, kinds)]
    return {UNET: unet, TEXT_ENCODER: text}


@pytest.fixture
def removal(base: Base, adapter_files: dict[str, Path]) -> tuple[FloatAdapter, SlotTable]:
    adapter = read_adapter("removal", adapter_files["removal"], base.unet)
    return adapter, slot_network(base.unet, [adapter])[1]


def same(adapter: FloatAdapter, other: FloatAdapter) -> None:
    assert adapter.weights.keys() == other.weights.keys()
    for path, pair in adapter.weights.items():
        np.testing.assert_array_equal(pair.a, other.weights[path].a)
        np.testing.assert_array_equal(pair.b, other.weights[path].b)
    assert adapter.digest == other.digest


def test_slots_give_every_key_its_meaning(base: Base, adapter_files: dict[str, Path], removal: tuple[FloatAdapter, SlotTable]) -> None:
    adapter, table = removal
    unet, text = bundle_layouts(table, layers(base))
    assert text is None
    assert all(layer is None or layer.weight is None for layer in unet.layers.values())
    same(read_lora("removal", adapter_files["removal"], unet), adapter)
    same(read_lora("removal", adapter_files["removal"], bundle_layouts(table, {})[0]), adapter)


def original(base: Base, adapter: FloatAdapter, file: Path) -> None:
    """The adapter in kohya's spelling of the original code's names."""
    names, tensors = original_names(layers(base)[UNET]), {}
    for path, pair in adapter.weights.items():
        if path in names:
            stem = "lora_unet_" + names[path].replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": torch.from_numpy(pair.a), f"{stem}.lora_up.weight": torch.from_numpy(pair.b)}
            tensors[f"{stem}.alpha"] = torch.tensor(float(pair.rank))
    assert tensors
    save_file(tensors, file)


def test_names_that_count_blocks_are_read_where_all_layers_are_known(
    base: Base, removal: tuple[FloatAdapter, SlotTable], tmp_path: Path
) -> None:
    adapter, table = removal
    original(base, adapter, tmp_path / "kohya.safetensors")
    by_model = read_adapter("removal", tmp_path / "kohya.safetensors", base.unet)
    same(read_lora("removal", tmp_path / "kohya.safetensors", bundle_layouts(table, layers(base))[0]), by_model)
    # Of the slots alone the blocks cannot be counted: a wrong layer would be worse than none.
    with pytest.raises(InputError, match="match nothing"):
        read_lora("removal", tmp_path / "kohya.safetensors", bundle_layouts(table, {})[0])


def test_a_target_without_a_slot_is_named(base: Base, adapter_files: dict[str, Path], removal: tuple[FloatAdapter, SlotTable]) -> None:
    unet, _ = bundle_layouts(removal[1], layers(base))
    with pytest.raises(CompatibilityError, match=r"'transform'.*targets among the bundle's slots.*attn2\.to_v"):
        read_lora("transform", adapter_files["transform"], unet)


def test_dora_needs_the_base_and_says_so(removal: tuple[FloatAdapter, SlotTable], adapter_files: dict[str, Path], tmp_path: Path) -> None:
    adapter, table = removal
    path, pair = next(iter(adapter.weights.items()))
    stem = f"unet.{path}"
    tensors = {f"{stem}.lora_A.weight": torch.from_numpy(pair.a), f"{stem}.lora_B.weight": torch.from_numpy(pair.b)}
    save_file({**tensors, f"{stem}.lora_magnitude_vector": torch.ones(len(pair.b))}, tmp_path / "dora.safetensors")
    with pytest.raises(UnsupportedError, match="no base; give it: --base MODEL"):
        read_lora("dora", tmp_path / "dora.safetensors", bundle_layouts(table, {})[0])


def test_text_slots_are_read_too(base: Base, removal: tuple[FloatAdapter, SlotTable], tmp_path: Path) -> None:
    path = next(name for name in layers(base)[TEXT_ENCODER] if name.endswith("q_proj")).removeprefix("text_encoder.")
    layer = base.text_encoder.get_submodule(path)
    tensors = {f"text_encoder.{path}.lora_A.weight": torch.randn(2, layer.in_features)}
    save_file({**tensors, f"text_encoder.{path}.lora_B.weight": torch.randn(layer.out_features, 2)}, tmp_path / "te.safetensors")
    by_model = read_adapter("words", tmp_path / "te.safetensors", base.unet, text_encoder=base.text_encoder)
    table = slot_networks(base.unet, base.text_encoder, [removal[0], by_model]).table
    unet, text = bundle_layouts(table, layers(base))
    assert isinstance(text, NetworkLayout)
    same(read_lora("words", tmp_path / "te.safetensors", unet, text_encoder=text), by_model)
