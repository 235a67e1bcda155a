"""The whole way on a tiny random model: what is written can be run without torch, and nothing is half-written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from quad.build.build import STAGES, BuildRequest, BuildResult, build
from quad.build.make_bundle import WrittenBundle
from quad.build.smoke import SmokeResult
from quad.compile.artifact import OnnxArtifact
from quad.compile.placement.stored_weights import stored_weights
from quad.core.errors import InputError, UsageError
from quad.core.sampling import AdapterDefaults
from quad.model.base.open import Base
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slotted_as
from quad.runtime.bundle import open_bundle
from quad.runtime.conformance import read_vectors, verify
from quad.runtime.pipeline import QuadPipeline
from tests.build.samples import SAMPLES, run


@pytest.fixture(scope="module")
def request_(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    return BuildRequest(model_dir, adapter_files, tmp_path_factory.mktemp("out") / "phone", samples=SAMPLES, precision="w8a16")


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def built(request_: BuildRequest, seen: list[tuple[str, float]]) -> BuildResult:
    return build(request_, lambda stage, share: seen.append((stage, share)))


@pytest.fixture(scope="module")
def pipe(built: BuildResult) -> QuadPipeline:
    return QuadPipeline.from_pretrained(built.bundle, threads=1)


def test_the_result_has_the_fields_that_checks_read(built: BuildResult, seen: list[tuple[str, float]]) -> None:
    fields = json.loads(json.dumps(built.to_json()))
    assert fields["bundle"] == str(built.bundle)
    assert fields["seconds"] > 0
    assert fields["peak_ram_bytes"] > 1e7
    profile = fields["profile"]
    assert profile["mode"] in ("anchor", "unified")
    assert (profile["anchor"] is None) == (profile["mode"] == "unified")
    assert profile["reason"]
    for column in ("qss", "qss_hist", "qss_interval", "sqnr_db"):
        assert set(profile[column]) == {"transform", "removal"}
    assert profile["ranking"] == sorted(profile["qss"], key=profile["qss"].__getitem__, reverse=True)
    assert {"nodes", "on_target", "on_cpu", "partitions"} <= set(fields["placement"])
    assert set(fields["stages"]) == {*STAGES} - {"compile", "emulate", "narrow", "decoder"}  # of some targets, of 4 bits, by choice
    assert [stage for stage, _ in seen if stage == "done"] == ["done"]
    assert fields["rom_bytes"]["shared"] > 0
    assert [note.partition(",")[0] for note in fields["notes"] if "mixed:80" in note] == ["w8a16 on cpu is for checking a chip's numbers"]
    assert fields["room"]["adapters"] == 2
    slots = open_bundle(built.bundle).slots
    assert fields["slots"] == "normalised"  # the default
    sizes = {name: 4 if name in slots.scale_inputs() else 2 for name in slots.input_shapes()}
    assert fields["room"]["input_bytes"] == sum(sizes[name] * math.prod(shape) for name, shape in slots.input_shapes().items())
    assert 1 < fields["room"]["input_bytes"] / fields["room"]["least_bytes"] <= 2
    assert set(fields["rom_bytes"]["adapters"]) == {"transform", "removal"}


def test_the_shipped_graphs_are_near_the_float_networks(built: BuildResult) -> None:
    assert set(built.smoke) == {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    assert set(built.smoke["unet"]) == {"base", "transform", "removal"}
    assert max(error for cases in built.smoke.values() for error in cases.values()) < 0.1, built.smoke


def test_the_bundle_opens_verified_and_knows_its_parents(built: BuildResult) -> None:
    bundle = open_bundle(built.bundle)
    assert bundle.manifest == built.manifest
    assert {slot.dtype for slot in bundle.slots.slots} == {"int16"}
    for name in bundle.manifest.adapters:
        manifest = json.loads(bundle.adapter_files(name)[0].read_bytes())
        assert {key: manifest["parents"][key] for key in ("slots", "profile", "graph")} == {
            key: bundle.manifest.parents[key] for key in ("slots", "profile", "graph")}  # fmt: skip
    assert bundle.manifest.tasks["removal"].sampler.olss is not None
    assert len(bundle.manifest.tasks["removal"].sampler.olss.timesteps) == 2


def test_its_token_table_has_a_byte_an_entry(built: BuildResult) -> None:
    bundle = open_bundle(built.bundle)
    (table,) = (name for name in bundle.profile.component("text_encoder") if name.endswith("token_embedding.weight"))
    encoding = bundle.profile.component("text_encoder")[table]
    assert (encoding.stored_as, encoding.axis) == ("int8", 1)
    assert ir.load(bundle.graph("text_encoder")).graph.initializers[table].dtype == ir.DataType.INT8


def test_its_conformance_vectors_are_what_it_computes(built: BuildResult, pipe: QuadPipeline) -> None:
    conformance = read_vectors(open_bundle(built.bundle))
    assert {picture.task for picture in conformance.vectors.pictures} == pipe.tasks.keys()
    assert [check for check in verify(pipe, conformance) if not check.passes] == []


def test_its_weights_are_rounded_with_compensation(built: BuildResult, base: Base) -> None:
    """Not each to the nearest integer, and none far from it; 16 bits as they were. Nothing else of the profile knows."""
    bundle, weights = open_bundle(built.bundle), weights_of(slotted_as(base.unet, base.text_encoder, open_bundle(built.bundle).slots).unet)
    stored = stored_weights(ir.load(bundle.graph("unet")), {name: weight.shape for name, weight in weights.items()})
    assert stored.keys() == weights.keys()
    for name, encoding in bundle.profile.component("unet").items():
        if name in weights:
            steps = np.abs(stored[name].astype(int) - encoding.quantize(weights[name]).astype(int))
            assert (steps.max() > 0) == (encoding.bits == 8), name
            assert np.mean(steps > 2) < 0.02, name


def test_there_and_back_through_the_pipeline(pipe: QuadPipeline) -> None:
    first, other, again = run(pipe, "transform"), run(pipe, "removal"), run(pipe, "transform")
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    base = run(pipe, "text-to-image")
    run(pipe, "removal")
    np.testing.assert_array_equal(run(pipe, "text-to-image"), base)


def test_float_precision(request_: BuildRequest, tmp_path: Path) -> None:
    fast = AdapterDefaults(sampler="lcm:3", guidance=1.5)
    options = {"precision": "float", "max_rank": 2, "min_energy": 0.1, "adapter_defaults": {"transform": fast}}
    result = build(replace(request_, output=tmp_path / "float", **options))
    assert max(error for cases in result.smoke.values() for error in cases.values()) <= 1e-4
    assert result.profile.mode == "float"
    assert not any("mixed:80" in note for note in result.notes)
    said = result.to_json()["lora"]["transform"]  # of rank 4, reduced
    assert said["rank"] == 2
    assert all(0.1 < kept < 1 for kept in said["energy"].values())
    assert any(note.startswith(f"{len(said['energy'])} of {len(said['energy'])} modules reduced to rank 2") for note in said["notes"])
    assert 0 < said["error"] <= max(1 - kept for kept in said["energy"].values()) ** 0.5
    pipe = QuadPipeline.from_pretrained(result.bundle, threads=1)
    assert pipe.bundle.slots.slots[0].dtype == "float32"
    # How an adapter is meant to be run is in its task, and travels with it to others.
    assert pipe.adapter_manifest("transform").defaults == fast
    assert pipe.adapter_manifest("removal").defaults is msgspec.UNSET
    spec = pipe.tasks["transform"]
    assert (spec.sampler.kind, spec.sampler.steps, spec.guidance) == ("lcm", 3, 1.5)
    pipe.set_adapters("transform")
    made = pipe("a tree", task="text-to-image")
    assert (made.sampler, made.guidance) == ("lcm:3", 1.5)
    assert pipe.preview(np.zeros((1, 4, 4, 4), np.float32)).size == (16, 16)


def test_an_adapter_that_would_lose_too_much_is_refused(request_: BuildRequest) -> None:
    with pytest.raises(InputError, match=r"adapter 'transform': expected 0.9 of each module's energy at its rank, found \S+ 0\.\d+"):
        build(replace(request_, max_rank=1))


def _without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placed graphs do not matter where writing fails: an empty one saves seconds."""
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="empty"), ir_version=10)
    monkeypatch.setattr("quad.compile.compiler.Compiler.artifact", lambda *_: OnnxArtifact(model=empty, placement={"nodes": 0}))


# Nothing of quad is loaded where a child begins; what it builds on (6 s) is, once for all of them.
FIRST_IMPORTS = """
import importlib, os
for library in ("diffusers.models.attention_processor", "diffusers", "transformers", "peft", "accelerate", "onnxscript", "scipy.stats"):
    importlib.import_module(library)
for first in ("quad.build", "quad.build.request", "quad.build.build"):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    import quad
    importlib.import_module(first)
    assert callable(quad.build)
    try:
        quad.build()
    except TypeError as error:
        print(f"{first}: {error}", flush=True)
    os._exit(0)
"""


def test_the_public_name_is_the_build_whatever_is_imported_first() -> None:
    """The room has the function's name: an import of any of its modules makes it an attribute of the package."""
    run = subprocess.run([sys.executable, "-c", FIRST_IMPORTS], capture_output=True, text=True, check=False, timeout=120)
    for first in ("quad.build", "quad.build.request", "quad.build.build"):
        assert f"{first}: build() missing 1 required positional argument: 'request'" in run.stdout.splitlines(), run.stderr


def test_bad_requests_are_refused_before_anything_is_loaded(request_: BuildRequest) -> None:
    nowhere = replace(request_, model=Path("/nowhere"))
    with pytest.raises(UsageError, match="P from 0 to 100"):
        build(replace(nowhere, precision="mixed:101"))
    with pytest.raises(UsageError, match="--target"):
        build(replace(nowhere, target="toaster"))
    with pytest.raises(UsageError, match="--adapter"):
        build(replace(nowhere, adapters={"../x": Path("x")}))
    with pytest.raises(UsageError, match="--lora-bits"):
        build(replace(nowhere, lora_bits=4))
    with pytest.raises(InputError, match="/nowhere"):
        build(nowhere)


def test_an_adapter_without_a_sample_is_refused(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample"):
        build(replace(request_, samples=SAMPLES[:1], output=tmp_path / "phone"))
    assert list(tmp_path.iterdir()) == []


def test_some_of_the_adapters_can_be_built(request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and tasks of the others are left out."""
    _without_export(monkeypatch)
    monkeypatch.setattr("quad.build.make_bundle.run_smoke", lambda *_: SmokeResult())
    one = {"transform": request_.adapters["transform"]}
    assert set(build(replace(request_, adapters=one, precision="float", output=tmp_path / "phone")).manifest.tasks) == {
        "text-to-image",
        "transform",
    }


def test_a_model_without_adapters_is_a_bundle_too(request_: BuildRequest, tmp_path: Path) -> None:
    result = build(replace(request_, adapters={}, output=tmp_path / "plain"))
    plain = QuadPipeline.from_pretrained(result.bundle, threads=1)
    assert plain.adapters == ()
    assert set(plain.tasks) == {"text-to-image"}
    assert run(plain, "text-to-image").std() > 0


def test_a_place_that_holds_something_else_is_refused_before_any_work(request_: BuildRequest, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "holiday.txt").write_text("mine")
    with pytest.raises(InputError, match="choose another -o"):
        build(replace(request_, model=Path("/nowhere"), output=taken))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_nothing_is_trained_unless_asked_for(built: BuildResult) -> None:
    assert {alignment.steps for alignment in built.alignment.values()} == {0}


def test_a_process_that_is_not_the_main_one_compiles_nothing(
    built: BuildResult, request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It helped with the training; a vendor's compiler takes minutes and gigabytes, once."""

    def fail(*_: object) -> None:
        raise AssertionError("exported twice")

    monkeypatch.setattr("quad.compile.compiler.export_graph", fail)
    monkeypatch.setattr("quad.build.build.shared", lambda _, codec: codec.decode(codec.encode(WrittenBundle(manifest=built.manifest))))
    other = build(replace(request_, distill_steps=0))
    assert other.manifest == built.manifest
    assert (other.placement, other.smoke) == ({}, {})
