"""The bits of every type that a LoRA file may have: the same numbers as torch reads, and none of them read before it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quad.core.errors import InputError
from quad.core.storage.stable_file import StableFile
from quad.lora.tensors import read_tensors, widened

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_bit_pattern_is_torch_s_number(dtype: str) -> None:
    torch_type = TYPES[dtype]
    bits = np.arange(2 ** (8 * torch_type.itemsize), dtype=f"<u{torch_type.itemsize}")
    expected = torch.from_numpy(bits.view(f"<i{torch_type.itemsize}")).view(torch_type).float().numpy()
    values = widened(dtype, bits.view("<f2") if dtype == "F16" else bits).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.signbit(values[~np.isnan(values)]), np.signbit(expected[~np.isnan(expected)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 1, 1), (0, 4)])
def test_a_file_of_any_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({"a.lora_A.weight": tensor, "b.alpha": torch.tensor(7, dtype=torch.int16)}, tmp_path / "a.safetensors", {"k": "v"})
    tensors, metadata = read_tensors(StableFile.of(tmp_path / "a.safetensors"))
    stored = tensors["a.lora_A.weight"]
    np.testing.assert_array_equal(stored.values().astype(np.float32), tensor.float().numpy())
    assert (stored.shape, stored.ndim, stored.size) == (shape, len(shape), tensor.numel())
    assert (tensors["b.alpha"].values().item(), metadata) == (7, {"k": "v"})


def test_a_tensor_that_begins_at_an_odd_byte(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    data = b"\x3c" + np.array([1.5, -2.5], "<f4").tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    tensors, _ = read_tensors(StableFile.of(tmp_path / "a.safetensors"))
    assert tensors["a"].values().tolist() == [1.0]
    assert tensors["b"].values().tolist() == [1.5, -2.5]
    assert tensors["b"].values().flags.aligned


def test_a_file_that_is_written_to_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    tensors, _ = read_tensors(StableFile.of(path))
    values = tensors["a"].values()
    values[:] = 3
    assert tensors["a"].values().tolist() == [1.0] * 4
    with path.open("r+b") as stream:
        stream.seek(-16, os.SEEK_END)
        stream.write(bytes(16))
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match="a file that stays as it is while it is read"):
        tensors["b"].values()
    assert values.tolist() == [3.0] * 4
