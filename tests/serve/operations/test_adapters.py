"""Packs that clients send: for all apps of the device, but never over what these rely on."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quad import QuadPipeline
from quad.core.errors import BusyError, QuadError, UsageError
from quad.core.storage.pack import write_pack
from quad.serve.limits import Limits
from tests.serve.conftest import Serve, same


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def test_a_pack_is_sent_used_replaced_and_taken_back(serve: Serve, tmp_path: Path, ink: Any, pipe: QuadPipeline) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    client, pack = serve(real=True, uploads=uploads).client(), tmp_path / "ink.qpack"
    write_pack(pack, *ink)
    for n_packs in (1, 2, 2):  # the one before is there to be gone back to
        assert client.load_lora_weights(pack, "ink") == "ink"
        assert len(list(uploads.iterdir())) == n_packs
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
    with pytest.raises(QuadError, match=r"^pack 'ink': expected a safetensors file, found something else \(7 bytes\)") as told:
        client.load_lora_weights(pack, "ink")
    assert told.value.exit_code == 3
    assert str(tmp_path) not in str(told.value)
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


def test_packs_on_their_way_are_counted_too(serve: Serve, tmp_path: Path, ink: Any) -> None:
    uploads, pack = tmp_path / "uploads", tmp_path / "ink.qpack"
    uploads.mkdir()
    write_pack(pack, *ink)
    served = serve(real=True, uploads=uploads, limits=Limits(max_uploads=1))
    head = b"PUT /v1/adapters/%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(served.address)
        slow.sendall(head % b"slow" + b"x")
        while not list(uploads.iterdir()):
            pass
        with pytest.raises(BusyError, match="at most 1 with those on their way"):
            served.client().load_lora_weights(pack, "ink")
        assert len(list(uploads.iterdir())) == 1
    while served.service.sending:
        pass
    for _ in range(2):  # a replacement may be there beside what it replaces
        served.client().load_lora_weights(pack, "ink")
    with pytest.raises(UsageError, match="remove one first"):
        served.client().load_lora_weights(pack, "other")


def test_an_adapter_that_goes_while_it_is_listed_is_left_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    monkeypatch.setattr(QuadPipeline, "adapters", ("sketch", "gone"))
    status, body = served.call("GET", "/v1/adapters")
    assert (status, [one["name"] for one in body["adapters"]]) == (200, ["sketch"])
