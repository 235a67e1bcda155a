"""Weights come in as float32 one tensor at a time, from every layout that a hub directory has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.model.base import load_component as load_component_module
from quad.model.base.load_component import DIFFUSION_STEM, find_component

UNETS = {"UNet2DConditionModel": diffusers.UNet2DConditionModel}
VAES = {"AutoencoderKL": diffusers.AutoencoderKL}


@pytest.fixture
def folder(unet: Any, tmp_path: Path) -> Path:
    """A U-Net's folder to change."""
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def _weights(folder: Path) -> Path:
    return folder / f"{DIFFUSION_STEM}.safetensors"


def _same(module: Any, expected: dict[str, Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floats_become_float32(dtype: torch.dtype, folder: Path) -> None:
    stored = {name: value.to(dtype) for name, value in load_file(_weights(folder)).items()}
    save_file(stored, _weights(folder))
    component = find_component(folder, UNETS, DIFFUSION_STEM)
    assert [file.path for file in component.files] == [_weights(folder)]
    assert all(parameter.is_meta for parameter in component.module.parameters())  # nothing was read yet
    module = component.load()
    _same(module, {name: value.float() for name, value in stored.items()})
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants(variant: str | None, unet: Any, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path / "unet", variant=variant, max_shard_size="40KB")
    component = find_component(tmp_path / "unet", UNETS, DIFFUSION_STEM)
    assert len(component.files) > 1
    _same(component.load(), dict(unet.state_dict()))


def test_a_plain_file_goes_before_a_variant(folder: Path) -> None:
    stored = load_file(_weights(folder))
    save_file({name: torch.zeros_like(value).half() for name, value in stored.items()}, folder / f"{DIFFUSION_STEM}.fp16.safetensors")
    _same(find_component(folder, UNETS, DIFFUSION_STEM).load(), stored)


def test_old_names_of_an_autoencoders_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                                  up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    vae.save_pretrained(tmp_path)
    state = load_file(_weights(tmp_path))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(state)
    for new, name in old.items():
        for key in [key for key in renamed if f"attentions.0.{new}." in key]:
            renamed[key.replace(f".{new}.", f".{name}.")] = renamed.pop(key)
    assert renamed.keys() != state.keys()
    save_file(renamed, _weights(tmp_path))
    _same(find_component(tmp_path, VAES, DIFFUSION_STEM).load(), state)


def _refused(folder: Path, says: str, error: type[QuadError] = InputError) -> None:
    with pytest.raises(error) as caught:
        find_component(folder, UNETS, DIFFUSION_STEM).load()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_or_no_floats(folder: Path) -> None:
    stored = load_file(_weights(folder))
    save_file({**stored, "conv_in.bias": torch.full_like(stored["conv_in.bias"], torch.nan)}, _weights(folder))
    _refused(folder, "expected finite weights, found NaN or infinity in conv_in.bias")
    save_file({**stored, "conv_in.bias": stored["conv_in.bias"].to(torch.int8)}, _weights(folder))
    _refused(folder, "expected weights that are floats, found conv_in.bias of torch.int8", UnsupportedError)
    save_file({**stored, "conv_in.bias": torch.ones(3)}, _weights(folder))
    _refused(folder, "expected weights that fit config.json, found conv_in.bias of shape (3,), not (16,)")


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ({"a": "../other.safetensors"}, "expected names of files beside it, found '../other.safetensors'"),
        ({"a": "/etc/passwd"}, "expected names of files beside it, found '/etc/passwd'"),
        ({}, "expected a weight_map of files, found none"),
        ({"a": "gone.safetensors"}, "gone.safetensors: expected a whole safetensors file"),
    ],
)
def test_lists_of_shards_that_lead_nowhere(listed: dict[str, str], says: str, folder: Path) -> None:
    (folder / f"{DIFFUSION_STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    _refused(folder, says)


@pytest.mark.parametrize("name", [f"{DIFFUSION_STEM}-00001-of-00002.safetensors", f"{DIFFUSION_STEM}.fp16-00001-of-00002.safetensors"])
def test_shards_without_their_list(name: str, folder: Path) -> None:
    _weights(folder).rename(folder / name)
    _refused(folder, f"expected {DIFFUSION_STEM}.safetensors.index.json, found {name} without it; fetch the model whole")


def test_weights_that_are_written_to_while_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load_component_module.empty_module

    def write_meanwhile(*arguments: Any) -> Any:
        with _weights(folder).open("r+b") as stream:
            stream.seek(-64, os.SEEK_END)
            stream.write(bytes(64))
        os.utime(_weights(folder), ns=(0, 0))
        return real(*arguments)

    monkeypatch.setattr(load_component_module, "empty_module", write_meanwhile)
    _refused(folder, "expected a file that stays as it is while it is read, found it was written to or replaced")


def test_a_config_that_makes_no_network(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "block_out_channels": "x"}))
    _refused(folder, "config.json: expected the config of a model, found ")


# Each is read in a process of its own, whose peak begins anew. It is forked where the libraries are loaded (6 s), by reading a small one.
MEASURE = """
import os, resource, sys
from pathlib import Path
import diffusers
from quad.model.base.load_component import DIFFUSION_STEM, find_component
kinds = {"UNet2DConditionModel": diffusers.UNet2DConditionModel}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, *folders = map(Path, sys.argv[1:])
find_component(small, kinds, DIFFUSION_STEM).load()
for folder in folders:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    before = peak()
    module = find_component(folder, kinds, DIFFUSION_STEM).load()
    sizes = [p.numel() * 4 for p in module.parameters()]
    print(before, peak(), sum(sizes), max(sizes), flush=True)
    os._exit(0)
"""
DTYPES = (torch.float16, torch.float32)


@pytest.fixture(scope="module")
def memory(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, list[int]]:
    """Of a file's type: peak before and after, the module's bytes, the largest tensor's."""
    unet.save_pretrained(small := tmp_path_factory.mktemp("small"))
    large = diffusers.UNet2DConditionModel(block_out_channels=(64, 128, 192, 192), cross_attention_dim=64, attention_head_dim=8)
    folders = [tmp_path_factory.mktemp("stored") for _ in DTYPES]
    for dtype, folder in zip(DTYPES, folders, strict=True):
        large.to(dtype).save_pretrained(folder)
    command = [sys.executable, "-c", MEASURE, str(small), *map(str, folders)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {dtype: [*map(int, line.split())] for dtype, line in zip(DTYPES, lines, strict=True)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_never_two_copies(dtype: torch.dtype, memory: dict[torch.dtype, list[int]]) -> None:
    before, peak, module_bytes, largest = memory[dtype]
    stored = module_bytes * dtype.itemsize // 4
    assert module_bytes > 80e6
    # The slack is what the libraries load lazily, 10 to 20 MB: half of what a second copy would take.
    assert peak - before < module_bytes + largest + stored / 2 < module_bytes + stored
