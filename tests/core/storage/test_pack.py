"""Law 7 for packs: what is written is read back, and every byte of it counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quad.core.errors import VerificationError
from quad.core.manifest import AdapterManifest
from quad.core.storage.pack import read_pack, write_pack

TENSORS = {"b.lora_A": np.arange(6, dtype=np.int16).reshape(2, 3), "a.lora_B": np.ones((3, 2), np.int8)}
MANIFEST = AdapterManifest(name="ink", format_version=1, rank=2, bits=16, size_bytes=0, sha256="", parents={"slots": "3f2a"})


def test_round_trip(tmp_path: Path) -> None:
    written = write_pack(tmp_path / "ink.qpack", MANIFEST, TENSORS)
    pack = read_pack(tmp_path / "ink.qpack")
    assert pack.manifest == written
    assert written.size_bytes == 18
    assert pack.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(pack.tensors[name], array, strict=True)


def test_one_adapter_gives_one_pack_byte_for_byte(tmp_path: Path) -> None:
    """The library draws the order of two words anew in each file."""
    for number in range(16):
        write_pack(tmp_path / f"{number}.qpack", MANIFEST, TENSORS)
    (data,) = {path.read_bytes() for path in tmp_path.iterdir()}
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    assert len(header) % 8 == 0
    assert list(json.loads(header)["__metadata__"]) == ["quad_adapter", "quad_digest"]
    with safe_open(tmp_path / "0.qpack", "np") as file:  # it is still the library's format
        np.testing.assert_array_equal(file.get_tensor("a.lora_B"), TENSORS["a.lora_B"], strict=True)


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ink.qpack"
    write_pack(path, MANIFEST, TENSORS)
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(VerificationError):
            read_pack(path)


def test_plain_lora_and_other_files(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "ink.safetensors")
    with pytest.raises(VerificationError, match="turn a LoRA file into a pack with quad adapt"):
        read_pack(tmp_path / "ink.safetensors")
    (tmp_path / "text").write_text("hello, this is not a pack")
    with pytest.raises(VerificationError, match="expected a safetensors file"):
        read_pack(tmp_path / "text")
