"""`quad adapt` as a user types it, and a later LoRA's whole way to a device: adapt, publish, fetch, install, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from quad.build.build import BuildRequest, build
from quad.cli.main import app
from quad.core.digests import file_digest
from quad.core.manifest import Golden
from quad.core.storage.install_pointers import read_installed
from quad.core.storage.pack import read_pack, write_pack
from quad.model.base.open import Base
from tests.build.samples import SAMPLES
from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir
from tests.small_model import write_lora

RUNNER = CliRunner()
PASSWORD = {"QUAD_PASSWORD": "a password of tests"}
NEW = ("--task", "ink", "--like", "transform")


def _quad(*arguments: object) -> Any:
    done = RUNNER.invoke(app, [*map(str, arguments), "--json"], env=PASSWORD)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _refused(code: int, *arguments: object) -> str:
    """The one line beside the stages."""
    done = RUNNER.invoke(app, [*map(str, arguments)], env=PASSWORD)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    lines = [line for line in done.stderr.splitlines() if "% " not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def phone(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen bundle."""
    place = tmp_path_factory.mktemp("frozen") / "phone"
    build(BuildRequest(model_dir, adapter_files, place, samples=SAMPLES, precision="w8a16", distill_steps=0))
    return place


@pytest.fixture(scope="module")
def lora(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("later") / "ink.safetensors"
    write_lora(file, base.unet, 2, ("attn1.to_q", "conv_in", "attn2.to_v"), 7)
    return file


def test_a_later_lora_reaches_a_device(phone: Path, lora: Path, tmp_path: Path) -> None:
    before = {file: file_digest(file) for file in phone.rglob("*") if file.is_file()}
    repo, keys, store, picture = tmp_path / "repo", tmp_path / "keys", tmp_path / "store", tmp_path / "in.png"
    admitted = _quad("adapt", phone, f"ink={lora}", "-o", tmp_path / "ink.qpack", *NEW)
    assert (admitted["name"], admitted["tasks"], admitted["rank"]) == ("ink", ["ink"], 2)
    _quad("publish", "init", repo, "--keys", keys)
    _quad("publish", "add", repo, tmp_path / "ink.qpack", "--keys", keys)
    source = ("--url", repo, "--root", repo / "metadata/1.root.json", "--store", store)
    assert _quad("fetch", phone, "ink", *source)["fetched"][0]["version"] == 1
    assert _quad("install", phone, "ink", "--store", store)["installed"][0]["switched"]
    assert read_installed(store)["ink"].read_bytes() == (tmp_path / "ink.qpack").read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
    made = ("--image", picture, "--prompt", "a tree", "--seed", 3)
    for task in ("ink", "transform"):
        told = _quad("run", phone, "--task", task, *made, "--store", store, "-o", tmp_path / f"{task}.png")
        assert (told["task"], told["adapter"]) == (task, task)
    assert (tmp_path / "ink.png").read_bytes() != (tmp_path / "transform.png").read_bytes()
    assert {file: file_digest(file) for file in phone.rglob("*") if file.is_file()} == before


def test_a_device_does_not_switch_to_a_pack_that_answers_otherwise_than_it_was_tested(phone: Path, lora: Path, tmp_path: Path) -> None:
    repo, keys, store = tmp_path / "repo", tmp_path / "keys", tmp_path / "store"
    _quad("adapt", phone, f"ink={lora}", "-o", tmp_path / "ink.qpack")
    pack = read_pack(tmp_path / "ink.qpack")
    said = pack.manifest.golden
    assert isinstance(said, Golden)
    strange = tuple(value + 2 * said.tolerance for value in said.values)
    golden = msgspec.structs.replace(said, values=strange)
    write_pack(tmp_path / "other.qpack", msgspec.structs.replace(pack.manifest, golden=golden), pack.tensors)
    _quad("publish", "init", repo, "--keys", keys)
    _quad("publish", "add", repo, tmp_path / "other.qpack", "--keys", keys)
    line = _refused(3, "install", phone, "ink", "--url", repo, "--root", repo / "metadata/1.root.json", "--store", store)
    assert "its golden output within" in line
    assert not read_installed(store)


def test_with_the_model_it_is_measured_and_people_read_lines(phone: Path, lora: Path, model_dir: Path, tmp_path: Path) -> None:
    words = ("--base", model_dir, "--distill-steps", 0, "--prompt", "a red house")
    asked = ["adapt", phone, f"ink={lora}", "-o", tmp_path / "ink.qpack", *NEW, *words]
    done = RUNNER.invoke(app, [*map(str, asked)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("adapter ink: rank 2, 16 bits")
    assert any(line.startswith("quality output ") for line in lines)
    assert not any(line.startswith("NOT checked") and "--base" in line for line in lines)


def test_a_lora_with_targets_that_have_no_slot_is_refused(phone: Path, base: Base, tmp_path: Path) -> None:
    write_lora(tmp_path / "more.safetensors", base.unet, 2, ("attn1.to_q", "conv_out"), 7)
    line = _refused(3, "adapt", phone, f"ink={tmp_path / 'more.safetensors'}", "-o", tmp_path / "ink.qpack")
    assert "conv_out" in line
    assert not (tmp_path / "ink.qpack").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--like", "sing"), "--like: expected a task of the bundle (removal, text-to-image, transform), found 'sing'"),
        (("--task", "ink"), "say which of these a new task is like: --like TASK"),
        (("--distill-steps", "3"), "give it: --base MODEL"),
        (("--base", ""), "--base: expected a model, found nothing"),
        (("--min-energy", "2"), "--min-energy"),
        (("-o", "."), "-o: expected a file to write, found a directory"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...], says: str, phone: Path, lora: Path, tmp_path: Path) -> None:
    given = ("-o", tmp_path / "ink.qpack", *arguments)
    assert says in _refused(2, "adapt", phone, f"ink={lora}", *given)
    assert not list(tmp_path.iterdir())
