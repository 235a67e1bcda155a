"""Pickled weights are known by their names, however these are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from quad.core.errors import InputError
from quad.core.storage.pickles import is_pickled
from quad.lora.locate import weights_files
from quad.runtime.adapters.file import open_adapter


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_suffixes_in_capitals_or_not(suffix: str) -> None:
    assert is_pickled(Path(f"a/model{suffix}"))
    assert is_pickled(Path(f"a/model{suffix.upper()}"))
    assert is_pickled(Path(f"a/model.safetensors{suffix}"))


@pytest.mark.parametrize("name", ["model.safetensors", "bin", "pt", "model.bin.safetensors", "model"])
def test_other_names(name: str) -> None:
    assert not is_pickled(Path(name))


def test_every_door_knows_them(tmp_path: Path) -> None:
    path = tmp_path / "ink.CKPT"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pickled"):
        open_adapter(path)
    with pytest.raises(InputError, match="pickled"):
        weights_files(path)
