"""Files of no good: bytes, numbers, configs and places that cannot be, each refused in one line."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save, save_file
from torch import Tensor, nn

from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.model.adapters import read_adapter

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PAIR = {f"unet.{Q}.lora_A.weight": torch.ones(4, 32), f"unet.{Q}.lora_B.weight": torch.ones(32, 4)}
PEFT_PAIR = {"base_model.model." + key.removeprefix("unet."): value for key, value in PAIR.items()}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def refused(error: type[QuadError], text: str, path: Path, unet: nn.Module, allow_unused: bool = False) -> None:
    with pytest.raises(error) as caught:
        read_adapter("ink", path, unet, allow_unused)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message
    assert len(message) < 1000


# -- bytes ------------------------------------------------------------------------------------------------------------------


def header(entries: dict[str, Any], data: bytes = b"", size: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


F32 = {"dtype": "F32", "shape": [2, 2]}
BROKEN: dict[str, bytes] = {
    "no bytes": b"",
    "a huge header": header({}, size=2**62),
    "a long header": header({}, size=2**20),
    "a header of nothing": struct.pack("<Q", 0),
    "no JSON": struct.pack("<Q", 4) + b"\xff\xfe\x00\x00",
    "deep JSON": struct.pack("<Q", 60000) + b"[" * 60000,
    "a list": struct.pack("<Q", 2) + b"[]",
    "beyond the end": header({"a": {**F32, "data_offsets": [0, 16]}}, bytes(8)),
    "overlapping": header({"a": {**F32, "data_offsets": [0, 16]}, "b": {**F32, "data_offsets": [8, 24]}}, bytes(24)),
    "the same bytes": header({"a": {**F32, "data_offsets": [0, 16]}, "b": {**F32, "data_offsets": [0, 16]}}, bytes(16)),
    "backwards": header({"a": {**F32, "data_offsets": [16, 0]}}, bytes(16)),
    "negative": header({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, bytes(16)),
    "a shape of another size": header({"a": {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 16]}}, bytes(16)),
    "an overflowing shape": header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}, bytes(16)),
    "no dtype": header({"a": {"shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
    "an unknown dtype": header({"a": {"dtype": "Q4_K", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
    "bytes left over": header({"a": {**F32, "data_offsets": [0, 16]}}, bytes(40)),
    "metadata of numbers": header({"__metadata__": {"a": 3}, "a": {**F32, "data_offsets": [0, 16]}}, bytes(16)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(name: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BROKEN[name])
    refused(InputError, "expected a whole safetensors file", path, unet)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 40, 100, -1])
def test_truncated_files_are_not_taken_for_another_format(cut: int, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(PAIR)[:cut])
    refused(InputError, "expected a whole safetensors file, found ", path, unet)
    with pytest.raises(InputError) as caught:
        read_adapter("a", path, unet)
    assert not any(word in str(caught.value) for word in ("pickle", "zip", "page", "JSON file", "GGUF"))


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (b"\x80\x02}q\x00X\x05\x00\x00\x00hello", "a pickled file"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94", "a pickled file"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00", "a zip archive, as torch.save writes one: a pickle"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b'{"r": 4, "lora_alpha": 8}', "a JSON file"),
    ],
)
def test_other_formats_under_this_name_are_named(start: bytes, named: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(start)
    refused(InputError, f"expected a whole safetensors file, found {named}", path, unet)


def test_a_pickle_of_torch_under_this_name(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save(PAIR, path)
    assert zipfile.is_zipfile(path)
    refused(InputError, "as torch.save writes one: a pickle, which can run code when it is opened", path, unet)


@pytest.mark.parametrize("key", ["new\nline.lora_A.weight", "x" * 5000 + ".lora_A.weight", "esc\x1b[2J.oft_R", "lora_te2_" + "y\n" * 4000])
def test_names_of_keys_cannot_break_the_line(key: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**PAIR, key: torch.ones(4, 32)})
    with pytest.raises(QuadError) as caught:
        read_adapter("ink", path, unet)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


# -- numbers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.int64, torch.uint8])
def test_numbers_that_are_no_floats_are_refused(dtype: torch.dtype, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    key = f"unet.{Q}.lora_A.weight"
    path = write(tmp_path / "a.safetensors", {**PAIR, key: torch.ones(4, 32).to(dtype)})
    refused(UnsupportedError, f"{key!r}: expected floats, found ", path, unet)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_read_exactly(dtype: torch.dtype, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    tensors = {key: (value * 0.75).to(dtype) for key, value in PAIR.items()}
    pair = read_adapter("a", write(tmp_path / "a.safetensors", tensors), unet).weights[Q]
    assert (pair.a == 0.75).all()
    assert (pair.b == 0.75).all()


def test_alpha_may_be_a_whole_number(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {**PAIR, f"unet.{Q}.alpha": torch.tensor(8)})
    assert (read_adapter("a", path, unet).weights[Q].b == 2).all()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (f"unet.{Q}.lora_A.weight", torch.full((4, 32), 1e300, dtype=torch.float64), "lora_A: expected finite numbers"),
        (f"unet.{Q}.lora_A.weight", torch.ones(0, 32), "lora_A: expected rank >= 1"),
        (f"unet.{Q}.lora_A.weight", torch.ones(0), "lora_A: expected (r, 32), found (0,)"),
        (f"unet.{Q}.lora_A.weight", torch.tensor(1.0), "lora_A: expected (r, 32), found ()"),
        (f"unet.{Q}.lora_A.weight", torch.ones(4, 32, 3, 3), "lora_A: expected (r, 32), found (4, 32, 3, 3)"),
        (f"unet.{Q}.alpha", torch.tensor(torch.inf), "expected a finite alpha, found inf"),
        (f"unet.{Q}.alpha", torch.tensor(1e30), "expected a finite alpha, found 1"),
        (f"unet.{Q}.alpha", torch.ones(0), "alpha: expected one number, found (0,)"),
    ],
)
def test_numbers_that_cannot_be_are_refused(key: str, value: Tensor, text: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    refused(InputError, text, write(tmp_path / "a.safetensors", {**PAIR, key: value}), unet)


def test_a_product_that_overflows_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    tensors = {**PAIR, f"unet.{Q}.lora_B.weight": torch.full((32, 4), 1e38), f"unet.{Q}.alpha": torch.tensor(1e6)}
    refused(InputError, "NaN or Inf in the product", write(tmp_path / "a.safetensors", tensors), unet)


# -- configs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"r": None}, "r: expected a whole number from 1 on, found null"),
        ({"lora_alpha": None}, "lora_alpha: expected a number, found null"),
        ({"rank_pattern": None}, "rank_pattern: expected an object of patterns and numbers, found null"),
        ({"alpha_pattern": False}, "alpha_pattern: expected an object of patterns and numbers, found False"),
        ({"alpha_pattern": {"to_q": float("nan")}}, "alpha_pattern: expected a number, found nan"),
        ({"peft_type": None}, "expected LoRA, LoHa or LoKr"),
        ({"r": "4"}, "r: expected a whole number from 1 on, found '4'"),
        ({"r": True}, "r: expected a whole number from 1 on, found True"),
        ({"r": 0}, "r: expected a whole number from 1 on, found 0"),
        ({"r": -4}, "r: expected a whole number from 1 on, found -4"),
        ({"r": 10**400}, "r: expected a whole number"),
        ({"r": [4]}, "r: expected a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number, found '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number, found nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha: expected a number, found inf"),
        ({"lora_alpha": {}}, "lora_alpha: expected a number"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false, found 'yes'"),
        ({"use_dora": 1}, "use_dora: expected true or false, found 1"),
        ({"rank_pattern": ["to_q"]}, "rank_pattern: expected an object of patterns and numbers, found ['to_q']"),
        ({"rank_pattern": {"to_q": "8"}}, "rank_pattern: expected a whole number"),
        ({"alpha_pattern": {"to_q": None}}, "alpha_pattern: expected a number"),
        ({"rank_pattern": {"(": 8}}, "rank_pattern: expected patterns that are a module's path, found '('"),
        ({"rank_pattern": {"(a+)+b": 8}}, "rank_pattern: expected patterns that are a module's path"),
        ({"rank_pattern": {".*.*.*.*x": 8}}, "rank_pattern: expected patterns that are a module's path"),
        ({"rank_pattern": {"(.|.)" * 40: 8}}, "rank_pattern: expected patterns that are a module's path"),
        ({"rank_pattern": {".?" * 40: 8}}, "rank_pattern: expected patterns that are a module's path"),
        ({"rank_pattern": {"x" * 1000: 8}}, "rank_pattern: expected patterns that are a module's path"),
        ({"rank_pattern": {f"{i}.*": 8 for i in range(100)}}, "rank_pattern: expected at most 32 expressions"),
        ({"peft_type": ["LORA"]}, "expected LoRA, LoHa or LoKr"),
        ({"init_lora_weights": "pissa" * 100}, "expected an adapter of the unchanged base"),
    ],
)
def test_configs_of_wrong_types_are_one_line(config: dict[str, Any], text: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", PEFT_PAIR)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, **config}))
    refused(QuadError, text, tmp_path, unet)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"r"', "[" * 100000, '{"r": ' + "9" * 5000 + "}", "\x00"])
def test_configs_that_are_no_object_are_one_line(text: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", PEFT_PAIR)
    (tmp_path / "adapter_config.json").write_text(text)
    refused(InputError, "adapter_config.json: expected ", tmp_path, unet)
    packed = write(tmp_path / "packed" / "pytorch_lora_weights.safetensors", PAIR, {"lora_adapter_metadata": text})
    refused(InputError, "pytorch_lora_weights.safetensors: expected ", packed, unet)


def test_patterns_of_plain_parts_are_read(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", PEFT_PAIR)
    patterns = {r"down_blocks\.\d+\..*": 1, f"^{Q}": 12}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": patterns}))
    assert (read_adapter("a", tmp_path, unet).weights[Q].b == 3).all()
