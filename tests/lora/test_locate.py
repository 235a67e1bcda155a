"""Where an adapter's files may lie: links, caches, and names of things that are no files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from quad.core.errors import InputError
from quad.model.adapters import read_adapter
from tests.lora.test_malformed_files import PAIR, PEFT_PAIR, Q, refused, write


def test_links_out_of_a_directory_are_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.safetensors", PEFT_PAIR)
    config = tmp_path / "outside.json"
    config.write_text('{"r": 4}')
    directory = tmp_path / "peft"
    directory.mkdir()
    (directory / "adapter_model.safetensors").symlink_to(outside)
    (directory / "adapter_config.json").write_text('{"r": 4}')
    refused(InputError, "adapter_model.safetensors: expected a file of the adapter's directory, found a link out of it", directory, unet)
    (directory / "adapter_model.safetensors").unlink()
    write(directory / "adapter_model.safetensors", PEFT_PAIR)
    (directory / "adapter_config.json").unlink()
    (directory / "adapter_config.json").symlink_to(os.path.relpath(config, directory))
    refused(InputError, "adapter_config.json: expected a file of the adapter's directory, found a link out of it", directory, unet)
    refused(InputError, "adapter_config.json: expected a file", directory / "adapter_model.safetensors", unet)
    models = tmp_path / "models"
    models.mkdir()
    (models / "unet").symlink_to(tmp_path / "peft2")
    write(tmp_path / "peft2" / "adapter_model.safetensors", PEFT_PAIR)
    refused(InputError, "found a link out of it", models, unet)


def test_a_hub_s_cache_keeps_its_files_elsewhere(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    write(tmp_path / "models--a--b" / "blobs" / "f00", PAIR)
    (snapshot / "pytorch_lora_weights.safetensors").symlink_to("../../blobs/f00")
    assert read_adapter("a", snapshot, unet).weights.keys() == {Q}
    link = tmp_path / "named.safetensors"  # a link that the user named is the user's choice
    link.symlink_to(snapshot / "pytorch_lora_weights.safetensors")
    assert read_adapter("a", link, unet).weights.keys() == {Q}


@pytest.mark.parametrize("where", ["unet", "sd15/v2/unet", "."])
def test_a_cached_repository_s_links_from_any_depth(where: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    folder = repository / "snapshots" / "0123" / where
    folder.mkdir(parents=True)
    write(repository / "blobs" / "f00", PEFT_PAIR)
    (repository / "blobs" / "f01").write_text('{"r": 4, "lora_alpha": 4}')
    for name, blob in (("adapter_model.safetensors", "f00"), ("adapter_config.json", "f01")):
        (folder / name).symlink_to(os.path.relpath(repository / "blobs" / blob, folder))
    for path in (folder, folder.parent if folder.name == "unet" else folder, folder / "adapter_model.safetensors"):
        assert read_adapter("a", path, unet).weights.keys() == {Q}
    # Another repository of the same cache is elsewhere, and so is another snapshot.
    for place in (tmp_path / "models--a--c" / "blobs", repository / "snapshots" / "4567", tmp_path):
        place.mkdir(parents=True, exist_ok=True)
        write(place / "w", PEFT_PAIR)
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors").symlink_to(place / "w")
        refused(InputError, "found a link out of it", folder, unet)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to(p), os.mkfifo, lambda p: p.symlink_to(p.parent / "gone")])
def test_what_is_no_file_is_one_line(make: Callable[[Path], None], unet: UNet2DConditionModel, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make(path)
    refused(InputError, "expected a LoRA file", path, unet)


def test_names_that_no_file_can_have(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    refused(InputError, "expected a LoRA file", tmp_path / ("x" * 300), unet)
