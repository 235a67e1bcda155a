"""Reuse of deep features: the shallow graph is the whole one's upper part, bit for bit, and adapters are exact under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.build.build import BuildRequest, build
from quad.build.extra_graphs.shallow import check_shallow
from quad.build.result import BuildResult
from quad.core.errors import CompatibilityError, UsageError
from quad.core.extra_graphs import DEEP_FEATURE, SHALLOW_UNET
from quad.export.bake.bake import bake
from quad.export.bake.request import BakeRequest
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.float_types import in_bf16
from quad.runtime.engines.graph import Graph
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.provenance.parameters import parameters_text
from tests.build.samples import SAMPLES
from tests.conftest import Spy
from tests.runtime.conftest import tiny_bundle

__all__ = ["tiny_bundle"]  # a fixture


@pytest.fixture(scope="module")
def built(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    output = tmp_path_factory.mktemp("reuse") / "phone"
    return build(BuildRequest(model_dir, adapter_files, output, samples=SAMPLES, precision="mixed:50", reuse=True))


@pytest.fixture(scope="module")
def pipe(built: BuildResult) -> QuadPipeline:
    return QuadPipeline.from_pretrained(built.bundle, threads=1)


def _latents(pipe: QuadPipeline, **words: Any) -> NDArray[np.float32]:
    common = {"task": "text-to-image", "guidance_scale": 3.0, "sampler": "ddim:6", "output_type": "latent"}
    latents: NDArray[np.float32] = pipe("a red house", **{**common, **words}).images
    return latents


def test_the_shallow_graph_answers_as_the_whole_one(pipe: QuadPipeline, built: BuildResult) -> None:
    whole, shallow, draw = pipe.graph("unet"), pipe.graph(SHALLOW_UNET), np.random.default_rng(0)
    names = ("sample", "timestep", "encoder_hidden_states")
    inputs = {name: draw.standard_normal([n or 1 for n in whole.inputs[name]]).astype(np.float32) for name in names}
    for adapter in ("transform", "removal"):
        pipe.set_adapters(adapter)
        output, deep = whole.run_all(inputs)
        np.testing.assert_array_equal(whole.run(inputs), output)
        answer = shallow.run({**{name: array for name, array in inputs.items() if name in shallow.inputs}, DEEP_FEATURE: deep})
        np.testing.assert_array_equal(answer, output)
    pipe.disable_lora()
    slots = [name for name in whole.inputs if "lora" in name]
    assert 0 < len([name for name in shallow.inputs if "lora" in name]) < len(slots)
    assert any(note.startswith("reuse: the shallow U-Net takes ") for note in built.notes)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmsolver++", "lcm"])
def test_one_is_no_reuse_and_more_is_near(pipe: QuadPipeline, sampler: str) -> None:
    words = {"sampler": f"{sampler}:6"}
    full = _latents(pipe, **words)
    np.testing.assert_array_equal(_latents(pipe, **words, reuse=1), full)
    reused = _latents(pipe, **words, reuse=2)
    assert (reused != full).any()
    assert np.isfinite(reused).all()


def test_every_nth_call_is_whole_on_each_side_of_guidance(pipe: QuadPipeline, spy: Spy) -> None:
    calls = spy(Graph, "run_all", lambda graph, _: graph is pipe.graph("unet"))
    shallow = spy(Graph, "run", lambda graph, _: graph is pipe.graph(SHALLOW_UNET))
    _latents(pipe, reuse=3)
    assert (sum(calls), sum(shallow)) == (4, 8)  # six steps of two sides, two of them whole
    calls.clear()
    shallow.clear()
    _latents(pipe, reuse=3, guidance_interval="0.3:1")  # a side that begins between two whole steps is whole there
    assert sum(calls) + sum(shallow) == 6 + 4
    assert sum(calls) == 4


def test_adapters_are_exact_under_reuse(pipe: QuadPipeline) -> None:
    base = _latents(pipe, reuse=2)
    pictures = []
    for name in ("transform", "removal", "transform"):
        pipe.set_adapters(name)
        pictures.append(_latents(pipe, reuse=2))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()
    pipe.disable_lora()
    np.testing.assert_array_equal(_latents(pipe, reuse=2), base)


@pytest.mark.parametrize("memory", ["balanced", "minimal"])
def test_under_every_memory_plan(pipe: QuadPipeline, built: BuildResult, memory: str) -> None:
    other = QuadPipeline.from_pretrained(built.bundle, threads=1, memory=memory)
    np.testing.assert_allclose(_latents(other, reuse=2), _latents(pipe, reuse=2), atol=0.05)


def test_the_file_of_a_picture_says_it(pipe: QuadPipeline) -> None:
    assert "Deep feature reuse: 2" in parameters_text(pipe("a house", reuse=2).facts[0])
    assert "Deep feature" not in parameters_text(pipe("a house").facts[0])


def test_what_it_cannot_be_is_refused(pipe: QuadPipeline, model_dir: Path, tmp_path: Path) -> None:
    for odd in (0, -1, 101, "2", 1.5):
        with pytest.raises(UsageError, match="reuse: expected"):
            pipe("a house", reuse=odd)
    for target in ("qnn-htp", "litert"):
        with pytest.raises(UsageError, match=f"--reuse: expected target cpu or openvino, found {target}"):
            BuildRequest(model_dir, {}, tmp_path / "phone", target=target, reuse=True).check()
    for words, says in (({"size": "64,128"}, "one size"), ({"max_profiles": 2}, "one profile")):
        with pytest.raises(UsageError, match=f"--reuse: expected {says}"):
            BuildRequest(model_dir, {}, tmp_path / "phone", reuse=True, **words).check()


@pytest.fixture(scope="module")
def openvino_bundle(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reuse-openvino") / "phone"
    request = BuildRequest(model_dir, adapter_files, output, samples=SAMPLES, target="openvino", precision="w8a16", reuse=True)
    return build(request).bundle


def test_openvino_too(openvino_bundle: Path) -> None:
    """Its build compares the two graphs with every adapter."""
    other = QuadPipeline.from_pretrained(openvino_bundle, threads=1)
    full, reused = _latents(other), _latents(other, reuse=2)
    assert np.isfinite(reused).all()
    assert (reused != full).any()
    np.testing.assert_array_equal(_latents(other, reuse=2), reused)


def test_in_bf16(openvino_bundle: Path) -> None:
    """Both U-Nets run in it, and a shallow call is as near to a whole one as the processor's bf16 lets it be."""
    if in_bf16(open_engine("openvino", (), "w8a16")) is None:
        pytest.skip("this processor has no bf16")
    exact, short = (QuadPipeline.from_pretrained(openvino_bundle, threads=1, float_type=name) for name in ("f32", "bf16"))
    for adapter in ("transform", "removal", "transform"):
        for pipe in (exact, short):
            pipe.set_adapters(adapter)
        np.testing.assert_array_equal(_latents(short, reuse=1), _latents(short))
        reused = _latents(short, reuse=2)
        assert (reused != _latents(exact, reuse=2)).any()
        np.testing.assert_allclose(reused, _latents(exact, reuse=2), atol=0.15)
    check_shallow(short)


def test_adapters_cannot_be_merged_into_two_graphs(built: BuildResult, tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match="expected a U-Net in one graph, found one that was built with --reuse"):
        bake(BakeRequest(bundle=built.bundle, adapters={"removal": 1.0}, output=tmp_path / "merged"))


def test_a_bundle_without_a_shallow_graph_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="reuse: expected 1, or a bundle of quad build --reuse, found 2"):
        QuadPipeline.from_pretrained(tiny_bundle, threads=1)("a house", reuse=2)
