"""Adapters by the names of diffusers' methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quad.core.errors import InputError, UsageError
from quad.core.storage.pack import write_pack
from quad.runtime import QuadPipeline


@pytest.fixture
def pack(tmp_path: Path, ink: Any) -> Path:
    write_pack(tmp_path / "ink.qpack", *ink)
    return tmp_path / "ink.qpack"


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def test_load_list_delete(pipe: QuadPipeline, pack: Path) -> None:
    own = ["transform", "removal", "sketch"]
    assert pipe.get_list_adapters() == {"unet": own}
    assert pipe.load_lora_weights(pack.parent, weight_name="ink.qpack", adapter_name="pen") == "pen"
    assert pipe.get_list_adapters() == {"unet": [*own, "pen"]}
    pipe.set_adapters("pen", adapter_weights=0.5)
    assert pipe.get_active_adapters() == ["pen"]
    pipe.delete_adapters(["pen"])
    assert pipe.get_list_adapters() == {"unet": own}
    assert pipe.get_active_adapters() == []
    with pytest.raises(UsageError, match="found 'pen'"):
        pipe.delete_adapters("pen")


def test_unload_leaves_the_base(pipe: QuadPipeline, pack: Path) -> None:
    def pixels() -> Any:
        return np.asarray(pipe("the car", task="text-to-image").images[0])

    base = pixels()
    pipe.load_lora_weights(pack)
    pipe.set_adapters(["ink", "sketch"], [0.5, 1.0])
    assert (pixels() != base).any()
    pipe.unload_lora_weights()
    assert pipe.adapters == ("transform", "removal", "sketch")
    np.testing.assert_array_equal(pixels(), base)


def test_weights_by_both_names(pipe: QuadPipeline) -> None:
    with pytest.raises(UsageError, match="found both; leave one out"):
        pipe.set_adapters("sketch", weights=1.0, adapter_weights=1.0)


def test_what_is_no_pack_is_told_the_way(pipe: QuadPipeline, tmp_path: Path) -> None:
    save_file({"lora_unet_mid.lora_up.weight": np.zeros((4, 2), np.float32)}, tmp_path / "ink.safetensors")
    with pytest.raises(InputError, match=r"found a LoRA in floats; pack it .*: quad adapt BUNDLE NAME=ink.safetensors -o NAME.qpack$"):
        pipe.load_lora_weights(tmp_path / "ink.safetensors")
    with pytest.raises(InputError, match="'latent-consistency/lcm-lora-sdv1-5', a hub id or no file; fetch it and pack it: quad adapt"):
        pipe.load_lora_weights("latent-consistency/lcm-lora-sdv1-5")
    with pytest.raises(InputError, match="check the path"):
        pipe.load_lora_weights("no/such/file.qpack")
