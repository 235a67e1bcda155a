"""`quad inspect` on LoRA files and packs; bundles are in test_run.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from quad.cli.main import app
from quad.core.manifest import FORMAT_VERSION, AdapterManifest
from quad.core.storage.pack import write_pack

RUNNER = CliRunner()
PATH = "down_blocks.0.attentions.0.to_q"


def _inspect(path: Path) -> dict[str, Any]:
    done = RUNNER.invoke(app, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    return facts


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight"),
        (f"base_model.model.{PATH}.lora_A.weight", f"base_model.model.{PATH}.lora_B.weight"),
        (f"lora_unet_{PATH.replace('.', '_')}.lora_down.weight", f"lora_unet_{PATH.replace('.', '_')}.lora_up.weight"),
    ],
)
@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 32), (np.float16, 16)])
def test_a_lora_file_of_each_dialect(tmp_path: Path, down: str, up: str, dtype: type, bits: int) -> None:
    file = tmp_path / "ink.safetensors"
    save_file({down: np.ones((4, 8), dtype), up: np.ones((8, 4), dtype)}, file)
    facts = _inspect(file)
    assert (facts["kind"], facts["slots"], facts["slots_digest"]) == ("lora", 1, None)
    assert facts["adapters"] == {"ink": {"rank": 4, "bits": bits, "bytes": file.stat().st_size}}


def test_a_diffusers_directory_is_named_after_itself(tmp_path: Path) -> None:
    (tmp_path / "ink").mkdir()
    save_file({f"unet.{PATH}.lora_A.weight": np.ones((2, 8), np.float32)}, tmp_path / "ink" / "pytorch_lora_weights.safetensors")
    assert _inspect(tmp_path / "ink")["adapters"]["ink"]["rank"] == 2


def test_other_kinds_are_counted_with_their_own_ranks(tmp_path: Path) -> None:
    """From the header alone: LoHa's columns, LoKr's smaller factor, and the text encoder's modules apart from the U-Net's."""
    flat, ones = f"lora_unet_{PATH.replace('.', '_')}", lambda *shape: np.ones(shape, np.float16)
    tensors = {f"{flat}.hada_w{i}_{side}": ones(*((8, 3) if side == "a" else (3, 8))) for i in (1, 2) for side in "ab"}
    tensors |= {"lora_unet_conv_in.lokr_w1": ones(2, 2), "lora_unet_conv_in.lokr_w2": ones(4, 6, 3, 3)}
    tensors |= {"lora_unet_k.lora_down.weight": ones(2, 8), "lora_unet_k.lora_up.weight": ones(8, 2), "lora_unet_k.dora_scale": ones(8, 1)}
    tensors |= {"lora_te_k.lora_down.weight": ones(5, 8), "lora_te_k.lora_up.weight": ones(8, 5), "lora_te_k.alpha": ones()}
    save_file(tensors, tmp_path / "ink.safetensors")
    facts = _inspect(tmp_path / "ink.safetensors")
    assert facts["details"]["kinds"] == {"LoHa": 1, "LoKr": 1, "LoRA with DoRA": 1, "LoRA": 1}
    assert (facts["slots"], facts["adapters"]["ink"]["rank"]) == (4, 5)


def _pack(path: Path, **said: Any) -> AdapterManifest:
    tensors = {"a.lora_A": np.ones((4, 8), np.int16), "a.lora_B": np.ones((8, 4), np.int16)}
    made = AdapterManifest(
        name="ink",
        format_version=FORMAT_VERSION,
        rank=3,
        bits=16,
        size_bytes=0,
        sha256="",
        parents={"slots": "5" * 64, "profile": "7" * 64},
        **said,
    )
    return write_pack(path, made, tensors)


def test_a_pack(tmp_path: Path) -> None:
    said = _pack(tmp_path / "ink.qpack")
    facts = _inspect(tmp_path / "ink.qpack")
    assert (facts["kind"], facts["slots"], facts["profile_digest"], facts["slots_digest"]) == ("pack", 1, "7" * 64, "5" * 64)
    assert facts["adapters"] == {"ink": {"rank": 3, "bits": 16, "bytes": said.size_bytes}}


def test_a_pack_with_one_flipped_byte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ink.qpack"
    _pack(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = RUNNER.invoke(app, ["inspect", str(file), "--json"])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "tensors", "says"),
    [
        ("ink.bin", None, "a pickled file, which can run code"),
        ("ink.safetensors", None, "expected a whole safetensors file"),
        ("ink.safetensors", {"conv.weight": np.ones(3, np.float32)}, "1 tensors such as conv.weight"),
        ("ink.safetensors", {f"unet.{PATH}.oft_R": np.ones(3, np.float32)}, "OFT"),
    ],
)
def test_what_is_no_lora_is_one_clear_line(tmp_path: Path, name: str, tensors: dict[str, Any] | None, says: str) -> None:
    file = tmp_path / name
    if tensors is None:
        file.write_bytes(b"not this")
    else:
        save_file(tensors, file)
    done = RUNNER.invoke(app, ["inspect", str(file)])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_people_read_lines(tmp_path: Path) -> None:
    _pack(tmp_path / "ink.qpack")
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "ink.qpack")])
    assert "adapter ink: rank 3, 16 bits, 128 B\n" in done.stdout


def test_the_largest_weight_is_said_and_never_rounded_up(tmp_path: Path) -> None:
    _pack(tmp_path / "ink.qpack", headroom=1.3199)
    assert _inspect(tmp_path / "ink.qpack")["adapters"]["ink"] == {"rank": 3, "bits": 16, "bytes": 128, "headroom": 1.3199}
    done = RUNNER.invoke(app, ["inspect", str(tmp_path / "ink.qpack")])
    assert "adapter ink: rank 3, 16 bits, 128 B, weights up to 1.31\n" in done.stdout
