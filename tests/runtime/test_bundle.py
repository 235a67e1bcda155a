"""Law 7: one flipped byte in any shipped file is refused; so is every name or version that is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quad.core.encoding import Encoding
from quad.core.errors import InputError, VerificationError
from quad.core.manifest import FileEntry
from quad.runtime import QuadPipeline, open_bundle


def test_opens_and_knows_its_files(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.manifest.name == "phone"
    assert bundle.graph("unet") == tiny_bundle / "unet/model.onnx"
    assert all(file.is_file() for name in bundle.manifest.adapters for file in bundle.adapter_files(name))


def test_who_runs_it_holds_no_encodings_of_weights(tiny_bundle: Path) -> None:
    """And its adapters are packed for the whole profile all the same."""
    bundle = open_bundle(tiny_bundle)
    weight = Encoding(bits=8, signed=True, symmetric=True, scale=(0.5,), zero_point=(0,))
    encodings = {**bundle.profile.encodings, "unet": {**bundle.profile.component("unet"), "conv_in.weight": weight}}
    whole = replace(bundle, profile=msgspec.structs.replace(bundle.profile, encodings=encodings))
    running = whole.without_weights()
    assert running.profile == bundle.profile
    assert running.digests == whole.digests != bundle.digests
    assert QuadPipeline.from_pretrained(tiny_bundle, threads=1).bundle.digests == bundle.digests


def test_any_flipped_byte_is_refused(bundle_copy: Path) -> None:
    files = [path for path in sorted(bundle_copy.rglob("*")) if path.is_file()]
    assert len(files) == 14
    for path in files:
        good = path.read_bytes()
        for place in {0, 1, len(good) // 3, len(good) // 2, len(good) - 2, len(good) - 1}:
            bad = bytearray(good)
            bad[place] ^= 1
            path.write_bytes(bad)
            with pytest.raises(VerificationError):
                QuadPipeline.from_pretrained(bundle_copy)
        path.write_bytes(good)
    open_bundle(bundle_copy)


def test_every_byte_of_the_manifest_counts(bundle_copy: Path) -> None:
    path = bundle_copy / "bundle.json"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(VerificationError):
            open_bundle(bundle_copy)


def test_without_verify_only_the_vocabulary_is_checked(bundle_copy: Path) -> None:
    path = bundle_copy / "vae_decoder/model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    open_bundle(bundle_copy, verify=False)
    (bundle_copy / "slots.json").write_bytes(b'{"slots":[]}')
    with pytest.raises(VerificationError):
        open_bundle(bundle_copy, verify=False)


def test_unknown_version_is_named(bundle_copy: Path, forge: Callable[..., None]) -> None:
    forge(bundle_copy, {"format_version": 7})
    with pytest.raises(VerificationError, match=r"expected format version 1, found 7; update quad"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "unet/../../outside", "a\\b"])
def test_names_that_leave_the_directory(bundle_copy: Path, rewrite: Callable[..., None], name: str) -> None:
    (bundle_copy.parent / "outside").write_bytes(b"")
    files = open_bundle(bundle_copy).manifest.files
    rewrite(bundle_copy, files=files | {name: FileEntry("0" * 64, 0)})
    with pytest.raises(VerificationError, match="not to be trusted"):
        open_bundle(bundle_copy)


def test_a_link_out_of_the_directory(bundle_copy: Path, rewrite: Callable[..., None]) -> None:
    outside = bundle_copy.parent / "model.onnx"
    (bundle_copy / "unet/model.onnx").rename(outside)
    (bundle_copy / "unet/model.onnx").symlink_to(outside)
    rewrite(bundle_copy)
    with pytest.raises(VerificationError, match="link out of the directory"):
        open_bundle(bundle_copy)


def test_missing_file_and_missing_digest(bundle_copy: Path, rewrite: Callable[..., None]) -> None:
    (bundle_copy / "adapters/sketch/adapter.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"expected a file adapters/sketch/adapter.safetensors, found none"):
        open_bundle(bundle_copy)
    rewrite(bundle_copy)
    with pytest.raises(VerificationError, match=r"none for adapters/sketch/adapter.safetensors"):
        open_bundle(bundle_copy)


def test_slots_of_another_bundle(bundle_copy: Path, rewrite: Callable[..., None]) -> None:
    parents = open_bundle(bundle_copy).manifest.parents
    rewrite(bundle_copy, parents=parents | {"slots": "9c01" * 16})
    with pytest.raises(VerificationError, match="expected slots digest 9c019c01"):
        open_bundle(bundle_copy)


def test_unsealed_manifest(bundle_copy: Path, forge: Callable[..., None]) -> None:
    forge(bundle_copy, {"sha256": ""})
    with pytest.raises(VerificationError, match="expected a sealed manifest"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize(("content", "error"), [(None, InputError), (b"[]", VerificationError), (b"\xff", VerificationError)])
def test_no_bundle(tmp_path: Path, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(error, match="bundle"):
        open_bundle(tmp_path)


def test_graph_that_lacks_a_slot(bundle_copy: Path, rewrite: Callable[..., None]) -> None:
    bundle = open_bundle(bundle_copy)
    slots = msgspec.structs.replace(bundle.slots, slots=(msgspec.structs.replace(bundle.slots.slots[0], rank=5), bundle.slots.slots[1]))
    parents: dict[str, Any] = bundle.manifest.parents | {"slots": slots.digest}
    (bundle_copy / "slots.json").write_bytes(msgspec.json.encode(slots))
    rewrite(bundle_copy, parents=parents, adapters=(), tasks={})
    with pytest.raises(VerificationError, match=r"graph unet, input conv_in.lora_A: expected \(5, 9, 3, 3\)"):
        QuadPipeline.from_pretrained(bundle_copy)
