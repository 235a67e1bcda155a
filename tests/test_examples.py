"""Every program under examples/ runs as its page says, on models of a few kilobytes."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from quad.core.storage.pack import write_pack
from quad.model.base.open import Base
from tests.runtime.conftest import TASKS as TINY_TASKS
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.runtime.conftest import tiny_bundle as tiny_bundle
from tests.small_model import TASKS as SMALL_TASKS
from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir
from tests.small_model import write_lora

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.timeout(900)  # one of them builds a model in a process of its own
# A build takes the traces of all tests.
ENVIRONMENT = {"QUAD": f"{sys.executable} -m tests.launcher 1 quad", "QUAD_PASSWORD": "a password of examples", "OMP_NUM_THREADS": "1",
               "PYTHONPATH": os.pathsep.join((str(EXAMPLES.parent / "src"), str(EXAMPLES.parent)))}  # fmt: skip


def _run(name: str, *arguments: object) -> str:
    """What a shell example prints."""
    command = ["sh", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`call(NAME, ...)`: what a Python example prints. It runs in this process, which has loaded the libraries already."""
    for name, text in ENVIRONMENT.items():
        monkeypatch.setenv(name, text)

    def run(name: str, *arguments: object) -> str:
        runpy.run_path(str(EXAMPLES / name))["main"](*map(str, arguments))
        return capsys.readouterr().out

    return run


def test_each_example_has_a_line_on_its_page_and_a_test() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    page = (EXAMPLES / "README.md").read_text("utf-8")
    assert set(re.findall(r"\| \[([\w.]+)\]\(\1\)", page)) == programs
    assert {name for name in programs if f'("{name}"' not in Path(__file__).read_text("utf-8")} == set()


@pytest.fixture(scope="module")
def built_bundle(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that build.sh makes of a small model."""
    bundle = tmp_path_factory.mktemp("built") / "phone"
    adapters = [option for name, path in adapter_files.items() for option in ("--adapter", f"{name}={path}")]
    assert "adapter removal: rank 2" in _run("build.sh", model_dir, bundle, *adapters, "--distill-steps", "0")
    return bundle


def test_a_built_bundle_does_every_task(call: Callable[..., str], built_bundle: Path, tmp_path: Path) -> None:
    printed = call("every_task.py", built_bundle, tmp_path / "pictures")
    assert {line.split(":")[0] for line in printed.splitlines()} == set(SMALL_TASKS)
    assert {path.stem for path in (tmp_path / "pictures").glob("*.png")} == set(SMALL_TASKS)


def test_a_later_lora_becomes_a_pack_and_runs(call: Callable[..., str], built_bundle: Path, base: Base, tmp_path: Path) -> None:
    write_lora(tmp_path / "ink.safetensors", base.unet, 2, ("attn1.to_q", "conv_in"), 7)
    assert "ink.qpack fits" in call("later_lora.py", built_bundle, f"ink={tmp_path / 'ink.safetensors'}", tmp_path / "ink.qpack")
    assert (tmp_path / "ink.qpack").is_file()
    assert (tmp_path / "ink.png").is_file()


def test_adapters_are_mixed(call: Callable[..., str], tiny_bundle: Path, tmp_path: Path) -> None:
    assert call("mix_adapters.py", tiny_bundle, "transform", "sketch", tmp_path / "mixed.png").count("transform") == 3
    with Image.open(tmp_path / "mixed.png") as strip:
        assert strip.width == 3 * strip.height


def test_several_apps_ask_one_server(call: Callable[..., str], tiny_bundle: Path) -> None:
    steps = TINY_TASKS["text-to-image"].sampler.steps
    printed = call("several_apps.py", tiny_bundle)
    assert f"gallery: (16, 16) after {steps} steps" in printed
    assert f"keyboard: (16, 16) after {steps} steps" in printed


def test_a_pack_travels(tiny_bundle: Path, tmp_path: Path) -> None:
    packs = [tmp_path / "ink.qpack", tmp_path / "newer.qpack"]
    for seed, pack in enumerate(packs):
        write_pack(pack, adapter_manifest("ink", 2), adapter_tensors(seed, 2))
    assert _run("over_the_air.sh", tiny_bundle, "ink", *packs).count("ink") >= 4
