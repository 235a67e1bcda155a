"""The Android sample: its steps in Python on a small bundle, what it is given, and what of a project can be read without building it."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from PIL import Image

from quad import QuadPipeline
from quad.core.manifest import BundleManifest
from quad.runtime.conformance import record_vectors
from tests.runtime.conftest import litert_bundle as litert_bundle
from tests.runtime.conftest import rewrite as rewrite
from tests.runtime.conftest import tiny_bundle as tiny_bundle

SAMPLE = Path(__file__).parents[1] / "examples/android"
SOURCES = SAMPLE / "app/src"
ANDROID = "{http://schemas.android.com/apk/res/android}"


def _program(name: str) -> Any:
    pytest.importorskip("ai_edge_litert")
    return SimpleNamespace(**runpy.run_path(str(SAMPLE / name)))


@pytest.fixture
def phone(litert_bundle: Path, rewrite: Callable[..., None], tmp_path: Path) -> Path:
    """A bundle with conformance vectors, whose task from text is of the sampler that the sample has."""
    root = Path(shutil.copytree(litert_bundle, tmp_path / "phone"))
    manifest = msgspec.json.decode((root / "bundle.json").read_bytes(), type=BundleManifest)
    task = manifest.tasks["text-to-image"]
    ddim = msgspec.structs.replace(task, sampler=msgspec.structs.replace(task.sampler, kind="ddim"), guidance=2.0)
    changes = {"target": "litert", "engines": ("litert",), "components": manifest.components,
               "tasks": {**manifest.tasks, "text-to-image": ddim}}  # fmt: skip
    rewrite(root, **changes)
    for name, data in record_vectors(QuadPipeline.from_pretrained(root, threads=1)).files().items():
        (root / name).write_bytes(data)
    rewrite(root, **changes)
    return root


@pytest.mark.parametrize("adapter", [None, "sketch"])
def test_the_same_steps_give_the_same_picture(adapter: str | None, phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = QuadPipeline.from_pretrained(phone, threads=1)
    if adapter is not None:
        pipe.set_adapters(adapter)
    expected = pipe("the car", task="text-to-image", seed=5, num_inference_steps=4).images[0]
    words = [] if adapter is None else ["--adapter", adapter]
    _program("same_steps.py").main(
        str(phone), "--prompt", "the car", "--seed", "5", "--steps", "4", *words, "-o", str(tmp_path / "car.png")
    )
    assert capsys.readouterr().out == f"{tmp_path / 'car.png'}\n"
    with Image.open(tmp_path / "car.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_the_same_steps_keep_the_conformance_vectors(phone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = _program("same_steps.py")
    steps.main(str(phone), "--verify")
    said = capsys.readouterr().out
    assert {line.partition(":")[0] for line in said.splitlines()} == {
        "text ''", "text 'a picture'", "unet", "unet transform", "unet removal", "unet sketch", "vae_encoder", "vae_decoder", "picture",
    }  # fmt: skip
    # The same engine and the same sums; the picture alone is rounded to 8 bits.
    assert all(distance < (5e-3 if name == "picture" else 1e-6) for name, distance, _ in steps.conformance(steps.open_bundle(phone)))
    shutil.copy(phone / "adapters/sketch/adapter.safetensors", phone / "adapters/transform/adapter.safetensors")
    with pytest.raises(SystemExit, match="are not these"):
        steps.main(str(phone), "--verify")


def test_what_the_app_is_given(phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SAMPLE))
    app = tmp_path / "src"
    _program("prepare.py").main(str(phone), "--app", str(app))
    given = app / "main/assets/bundle"
    for name in ("bundle.json", "conformance.json", "unet/model.tflite", "adapters/sketch/adapter.safetensors"):
        assert (given / name).read_bytes() == (phone / name).read_bytes()
    steps = _program("same_steps.py")
    np.testing.assert_array_equal(
        steps.read_tensors(app / "androidTest/assets/noise.safetensors")["0"], steps.first_noise(steps.open_bundle(phone), 0)
    )
    # The U-Net's answer has 16 bits, and goes through a graph of one operator; the others are floats.
    assert [path.parent.name for path in given.rglob("widen.tflite")] == ["unet"]


def test_an_answer_of_16_bits_is_widened_to_the_same_floats(phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the API that the app uses: the output of one graph is the input of the other."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    _program("prepare.py").main(str(phone), "--app", str(tmp_path))
    from ai_edge_litert.compiled_model import CompiledModel

    given, steps = tmp_path / "main/assets/bundle/unet", _program("same_steps.py")
    graph = steps.open_bundle(phone).graph("unet")
    tensors = steps.read_tensors(phone / "conformance.safetensors")
    call = {name: tensors[f"calls/unet/{name}"] for name in ("sample", "timestep", "encoder_hidden_states")}
    slots = steps.adapter_inputs(steps.open_bundle(phone), "sketch", "unet")
    graph.bind(slots)
    unet, widen = (CompiledModel.from_file(str(given / name)) for name in ("model.tflite", "widen.tflite"))
    key, inputs = "serving_default", {}
    for name, array in {**slots, **{name: steps.encode(graph.ports["inputs"][name], array) for name, array in call.items()}}.items():
        inputs[name] = unet.create_input_buffer_by_name(key, name)
        flat = np.ascontiguousarray(array).reshape(-1)
        inputs[name].write(flat.view(np.int8) if flat.dtype == np.int16 else flat)
    answer, floats = unet.create_output_buffer_by_name(key, "out_sample"), widen.create_output_buffer_by_name(key, "float")
    unet.run_by_name(key, inputs, {"out_sample": answer})
    widen.run_by_name(key, {"out_sample": answer}, {"float": floats})
    expected = graph.run(**call)
    np.testing.assert_array_equal(floats.read(expected.size, np.float32).reshape(expected.shape), expected)


def test_the_steps_import_nothing_but_numpy_and_the_library() -> None:
    imported = re.findall(r"^(?:from|import) (\w+)", (SAMPLE / "same_steps.py").read_text("utf-8"), re.MULTILINE)
    standard = {"__future__", "argparse", "collections", "dataclasses", "json", "pathlib", "re", "struct", "typing", "zlib"}
    assert set(imported) - standard == {"numpy", "ai_edge_litert"}


def test_the_manifest_names_what_there_is() -> None:
    root = ElementTree.parse(SOURCES / "main/AndroidManifest.xml").getroot()
    (activity,) = root.findall("application/activity")
    name = activity.get(f"{ANDROID}name", "").removeprefix(".")
    assert f"class {name} : Activity()" in (SOURCES / f"main/kotlin/quad/sample/{name}.kt").read_text("utf-8")
    assert activity.get(f"{ANDROID}exported") == "true"
    assert [action.get(f"{ANDROID}name") for action in activity.findall("intent-filter/action")] == ["android.intent.action.MAIN"]
    assert root.findall("uses-permission") == []  # it needs no network
    strings = {entry.get("name") for entry in ElementTree.parse(SOURCES / "main/res/values/strings.xml").getroot()}
    kotlin = "".join(path.read_text("utf-8") for path in SOURCES.rglob("*.kt"))
    assert set(re.findall(r"R\.string\.(\w+)", kotlin.replace("android.R", ""))) <= strings
    assert root.find("application").get(f"{ANDROID}label") == "@string/app_name"  # type: ignore[union-attr]


def test_gradle_and_kotlin_files_agree_with_each_other() -> None:
    catalogue = tomllib.loads((SAMPLE / "gradle/libs.versions.toml").read_text("utf-8"))
    for kind in ("libraries", "plugins"):
        assert {entry["version"]["ref"] for entry in catalogue[kind].values()} <= catalogue["versions"].keys()
    build = (SAMPLE / "app/build.gradle.kts").read_text("utf-8")
    used = set(re.findall(r"\(libs\.([\w.]+)\)", build))
    known = {name.replace("-", ".") for name in catalogue["libraries"]} | {
        f"plugins.{name.replace('-', '.')}" for name in catalogue["plugins"]
    }
    assert used == known
    assert 'namespace = "quad.sample"' in build
    assert 'include(":app")' in (SAMPLE / "settings.gradle.kts").read_text("utf-8")
    assert "gradle-9." in (SAMPLE / "gradle/wrapper/gradle-wrapper.properties").read_text("utf-8")
    for path in (*SOURCES.rglob("*.kt"), *SAMPLE.glob("*.kts"), SAMPLE / "app/build.gradle.kts"):
        text = re.sub(r'"(?:[^"\\]|\\.)*"', "", path.read_text("utf-8"))
        assert [text.count(mark) for mark in "({["] == [text.count(mark) for mark in ")}]"], path
        assert path.suffix == ".kts" or text.startswith("package quad.sample\n")


def test_the_page_says_first_that_it_was_not_built() -> None:
    assert (SAMPLE / "README.md").read_text("utf-8").splitlines()[2].startswith("**Not built, not run on a phone.**")
