"""Conformance vectors: what a pipeline recorded it answers again, and a runtime that computes something else is told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from quad.cli.main import app
from quad.core.errors import CompatibilityError
from quad.runtime import open_bundle
from quad.runtime.conformance import Check, ConformanceVectors, answer, read_vectors, record_vectors, verify
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.samplers.euler import Euler
from quad.runtime.samplers.names import SAMPLER_NAMES

ENGINES = ("ort", "openvino")
RUNNER = CliRunner()


def opened(bundle: Path, engine: str = "ort") -> QuadPipeline:
    return QuadPipeline.from_pretrained(bundle, engine=engine, threads=1)


@pytest.fixture(scope="module")
def conformance(tiny_bundle: Path) -> ConformanceVectors:
    return record_vectors(opened(tiny_bundle))


def failed(checks: list[Check]) -> set[str]:
    return {f"{check.kind} {check.name}" for check in checks if not check.passes}


def stored(root: Path, conformance: ConformanceVectors, rewrite: Callable[..., None]) -> Path:
    for name, content in conformance.files().items():
        (root / name).write_bytes(content)
    rewrite(root)
    return root


def test_vectors_cover_every_adapter_task_and_sampler(tiny_bundle: Path, conformance: ConformanceVectors) -> None:
    manifest, vectors = open_bundle(tiny_bundle).manifest, conformance.vectors
    calls = {(call.graph, call.adapter or None) for call in vectors.calls}
    assert calls == {("vae_encoder", None), ("vae_decoder", None), ("unet", None), *(("unet", name) for name in manifest.adapters)}
    assert {picture.task for picture in vectors.pictures} == manifest.tasks.keys()
    without_signal_at_the_end = {"pndm"}  # refuses such a schedule, as every call with it does
    assert {sampler.name for sampler in vectors.samplers} == {
        *SAMPLER_NAMES,
        *(f"task {task}" for task in manifest.tasks),
    } - without_signal_at_the_end


def test_pipelines_side_by_side_record_the_same(tiny_bundle: Path, conformance: ConformanceVectors) -> None:
    assert record_vectors(opened(tiny_bundle), beside=[opened(tiny_bundle), opened(tiny_bundle)]).files() == conformance.files()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_passes(tiny_bundle: Path, conformance: ConformanceVectors, engine: str) -> None:
    checks = verify(opened(tiny_bundle, engine), conformance)
    assert failed(checks) == set()
    assert max(check.distance for check in checks) < 1 / 255  # float graphs; a picture that is pasted back has 255 levels


def test_files_hold_all_of_it(bundle_copy: Path, conformance: ConformanceVectors, rewrite: Callable[..., None]) -> None:
    again = read_vectors(open_bundle(stored(bundle_copy, conformance, rewrite)))
    assert again.vectors == conformance.vectors
    assert again.tensors.keys() == conformance.tensors.keys()
    for name, tensor in conformance.tensors.items():
        np.testing.assert_array_equal(again.tensor(name), tensor)


def test_another_adapter_in_the_place_of_one_is_seen(tiny_bundle: Path, conformance: ConformanceVectors) -> None:
    pipe = opened(tiny_bundle)
    calls = {call.adapter: call for call in conformance.vectors.calls if call.graph == "unet"}
    swapped = msgspec.structs.replace(calls["transform"], adapter="removal")
    vectors = msgspec.structs.replace(conformance.vectors, calls=(swapped,), pictures=())
    assert failed(verify(pipe, replace(conformance, vectors=vectors))) == {"call unet with removal"}


def test_a_sampler_that_steps_otherwise_is_seen(
    tiny_bundle: Path, conformance: ConformanceVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Euler.advance
    monkeypatch.setattr(Euler, "advance", lambda self, step: advance(self, step) * 1.001)
    names = failed(verify(opened(tiny_bundle), replace(conformance, vectors=msgspec.structs.replace(conformance.vectors, pictures=()))))
    assert {"sampler euler", "sampler task sketch"} <= names
    assert "sampler ddim" not in names


def test_noise_that_is_drawn_otherwise_is_seen(tiny_bundle: Path, conformance: ConformanceVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = answer.noise
    monkeypatch.setattr(answer, "noise", lambda vector: np.nextafter(drawn(vector), np.float32(9)))
    vectors = msgspec.structs.replace(conformance.vectors, calls=(), pictures=())
    assert failed(verify(opened(tiny_bundle), replace(conformance, vectors=vectors))) == {
        f"noise seed {noise.seed}" for noise in vectors.noise
    }


def test_tokens_that_are_read_otherwise_are_seen(tiny_bundle: Path, conformance: ConformanceVectors) -> None:
    text = conformance.vectors.texts[1]
    other = msgspec.structs.replace(text, ids=(tuple(reversed(text.ids[0])),))
    vectors = msgspec.structs.replace(conformance.vectors, texts=(text, other), calls=(), pictures=())
    checks = [check for check in verify(opened(tiny_bundle), replace(conformance, vectors=vectors)) if check.kind == "text"]
    assert [check.passes for check in checks] == [True, False]


def test_the_command_tells_every_engine_apart(bundle_copy: Path, conformance: ConformanceVectors, rewrite: Callable[..., None]) -> None:
    done = RUNNER.invoke(app, ["verify", str(stored(bundle_copy, conformance, rewrite)), "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"], sorted(told["engines"])) == (0, True, sorted(ENGINES))
    assert all(row["ok"] and row["distance"] <= row["tolerance"] for rows in told["engines"].values() for row in rows)


def test_the_command_fails_on_another_picture(bundle_copy: Path, conformance: ConformanceVectors, rewrite: Callable[..., None]) -> None:
    picture = conformance.vectors.pictures[0]
    other = msgspec.structs.replace(picture, values=tuple(1 - value for value in picture.values))
    vectors = msgspec.structs.replace(conformance.vectors, pictures=(other, *conformance.vectors.pictures[1:]))
    stored(bundle_copy, replace(conformance, vectors=vectors), rewrite)
    done = RUNNER.invoke(app, ["verify", str(bundle_copy), "--engine", "ort"])
    assert done.exit_code == 1
    assert f"picture {picture.task}" in done.stderr.splitlines()[-1]
    assert f"FAILS picture {picture.task}" in done.stdout


def test_a_bundle_without_vectors_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(CompatibilityError, match="build it again"):
        read_vectors(open_bundle(tiny_bundle))
    assert RUNNER.invoke(app, ["verify", str(tiny_bundle)]).exit_code == 3
