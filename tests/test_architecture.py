"""The house keeps its walls: what may be loaded on a device, and that every verb is documented."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from quad.cli.main import app
from tests.admit.frozen import freeze, write_later_lora
from tests.runtime.conftest import tiny_bundle as tiny_bundle

ROOT = Path(__file__).parents[1]
NOT_ON_A_DEVICE = {"torch", "diffusers", "transformers", "peft", "accelerate", "onnx", "onnx_ir", "onnxscript", "openvino", "scipy"}
DEVICE_ROOMS = ("quad.admit", "quad.core", "quad.lora", "quad.runtime", "quad.delivery", "quad.serve")


def _loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("room", DEVICE_ROOMS)
def test_device_rooms_load_no_training_framework(room: str) -> None:
    # Vendor engines are walked too: they may import their vendor only when opened.
    walk = f"for module in pkgutil.walk_packages(room.__path__, '{room}.'): importlib.import_module(module.name)"
    assert not _loaded(f"import importlib, pkgutil\nimport {room} as room\n{walk}") & NOT_ON_A_DEVICE


def test_the_pipeline_by_its_public_name_loads_no_training_framework() -> None:
    assert not _loaded("import quad\nassert quad.QuadPipeline.from_pretrained") & NOT_ON_A_DEVICE


def test_an_admission_loads_no_training_framework(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`quad adapt` without a model, from the file to the pack; its path is one that could be a hub id."""
    monkeypatch.chdir(tmp_path)
    Path("loras").mkdir()
    bundle, lora = freeze(tiny_bundle, tmp_path / "phone"), write_later_lora(Path("loras/ink.safetensors"))
    words = ["adapt", str(bundle), f"ink={lora}", "-o", str(tmp_path / "ink.qpack"), "--json"]
    loaded = _loaded(f"from quad.cli.main import app\ntry:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code")
    assert "onnxruntime" in loaded
    assert not loaded & NOT_ON_A_DEVICE
    assert (tmp_path / "ink.qpack").is_file()


def test_the_command_line_itself_is_light() -> None:
    assert not _loaded("import quad.cli.main") & (NOT_ON_A_DEVICE | {"onnxruntime", "tuf", "cryptography", "starlette", "uvicorn"})


def test_what_runs_loads_nothing_of_what_delivers_and_the_other_way_round() -> None:
    assert not _loaded("import quad\nassert quad.QuadPipeline.from_pretrained") & {"tuf", "cryptography"}
    assert "onnxruntime" not in _loaded("import quad.delivery.device.device, quad.delivery.publisher.repository")


def _verbs() -> list[str]:
    single = [command.callback.__name__ for command in app.registered_commands if command.callback is not None]
    return [*single, *(group.name for group in app.registered_groups if group.name)]


def test_there_are_verbs() -> None:
    assert {"build", "run", "inspect", "publish", "install"} <= set(_verbs())


@pytest.mark.parametrize("verb", _verbs())
def test_every_verb_and_option_is_documented(verb: str) -> None:
    from typer.main import get_command

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## quad (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert verb in sections
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    every = [command, *getattr(command, "commands", {}).values()]  # a group's own verbs are documented with it
    options = [name for one in every for parameter in one.params for name in parameter.opts if name.startswith("--") and name != "--help"]
    missing = [name for name in options if f"`{name}" not in sections[verb]]
    assert not missing


def test_no_two_public_classes_share_a_name() -> None:
    """Who reads a name knows which class it is."""
    places: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src/quad").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert {name: shared for name, shared in places.items() if len(shared) > 1} == {}


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """pytest's own list of folders that it does not enter has `build` and `dist`."""
    tests, patterns = ROOT / "tests", pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert Path("build") in folders
    assert not [folder for folder in folders if any(fnmatch(part, pattern) for part in folder.parts for pattern in patterns)]
