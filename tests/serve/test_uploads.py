"""Packs that clients send: for all apps of the device, but never over what these rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from quad import QuadPipeline
from quad.core.errors import QuadError, UsageError
from quad.core.pack import write_pack
from tests.serve.conftest import Serve, same


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def test_a_pack_is_sent_used_replaced_and_taken_back(serve: Serve, tmp_path: Path, ink: Any, pipe: QuadPipeline) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    client, pack = serve(real=True, uploads=uploads).client(), tmp_path / "ink.qpack"
    write_pack(pack, *ink)
    for _ in range(2):
        assert client.load_lora_weights(pack, "ink") == "ink"
        assert len(list(uploads.iterdir())) == 1
    pipe.load_lora_weights(pack, "ink")
    for one in (client, pipe):
        one.set_adapters("ink")
    same(client, pipe, "car")
    with pytest.raises(UsageError, match="expected a new one"):
        client.load_lora_weights(pack, "sketch")
    with pytest.raises(UsageError, match="letters, digits"):
        client.load_lora_weights(pack, "in k")
    client.unload("ink")
    assert client.get_active_adapters() == []
    assert "ink" not in client.adapters
    assert not list(uploads.iterdir())
    with pytest.raises(UsageError, match="one that was uploaded"):
        client.unload("sketch")


def test_a_pack_that_is_none_or_another_bundles_is_refused_and_leaves_nothing(serve: Serve, tmp_path: Path, ink: Any) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    client, pack = serve(real=True, uploads=uploads).client(), tmp_path / "ink.qpack"
    manifest, tensors = ink
    write_pack(pack, msgspec.structs.replace(manifest, parents={"slots": "0" * 64, "profile": "0" * 64}), tensors)
    with pytest.raises(QuadError, match="packed for slots 00000000") as told:
        client.load_lora_weights(pack, "ink")
    assert told.value.exit_code == 3
    pack.write_bytes(b"nothing")
    with pytest.raises(QuadError, match="safetensors") as told:
        client.load_lora_weights(pack, "ink")
    assert told.value.exit_code == 3
    assert not list(uploads.iterdir())


def test_a_pack_brings_no_task_that_others_rely_on(serve: Serve, tmp_path: Path, ink: Any) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    client, pack = serve(real=True, uploads=uploads).client(), tmp_path / "ink.qpack"
    manifest, tensors = ink
    spec = client.tasks["sketch"]
    write_pack(pack, msgspec.structs.replace(manifest, tasks={"sketch": spec}), tensors)
    with pytest.raises(UsageError, match="'sketch', which is there already"):
        client.load_lora_weights(pack, "ink")
    assert client.tasks["sketch"].adapter == "sketch"
    assert not list(uploads.iterdir())
    write_pack(pack, msgspec.structs.replace(manifest, tasks={"ink": spec}), tensors)
    for _ in range(2):  # its own task it may bring again
        client.load_lora_weights(pack, "ink")
    assert client.tasks["ink"].adapter == "ink"
