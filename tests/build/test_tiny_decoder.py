"""A tiny decoder beside the model's own: near to it, by choice alone, and a graph like the others on every engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.build.build import BuildRequest, build
from quad.build.extra_graphs import tiny_decoder
from quad.core.errors import UsageError
from quad.core.extra_graphs import TINY_DECODER
from quad.runtime.bundle import open_bundle
from quad.runtime.conformance.vectors import read_vectors
from quad.runtime.conformance.verify import verify
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.provenance.parameters import parameters_text
from tests.build.samples import SAMPLES
from tests.runtime.conftest import tiny_bundle

__all__ = ["tiny_bundle"]  # a fixture
STEPS = 60


def _built(request: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny_decoder, "STEPS", STEPS)
    return build(request).bundle


@pytest.fixture(scope="module")
def request_(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    output = tmp_path_factory.mktemp("decoder") / "phone"
    return BuildRequest(model_dir, adapter_files, output, samples=SAMPLES, precision="mixed:50", tiny_decoder=True)


@pytest.fixture(scope="module")
def bundle(request_: BuildRequest) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _built(request_, monkeypatch)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(bundle, threads=1)


def _picture(pipe: QuadPipeline, **words: Any) -> NDArray[np.float32]:
    common = {"task": "text-to-image", "sampler": "ddim:4", "output_type": "np"}
    picture: NDArray[np.float32] = pipe("a red house", **{**common, **words}).images
    return picture


def test_the_default_path_keeps_its_bits(bundle: Path, pipe: QuadPipeline, request_: BuildRequest, tmp_path: Path) -> None:
    plain = build(replace(request_, output=tmp_path / "plain", tiny_decoder=False)).bundle
    with_one, without = open_bundle(bundle), open_bundle(plain)
    for component in without.manifest.components:
        assert with_one.graph(component).read_bytes() == without.graph(component).read_bytes()
    assert {*with_one.manifest.components} - {*without.manifest.components} == {TINY_DECODER}
    np.testing.assert_array_equal(_picture(pipe), _picture(QuadPipeline.from_pretrained(plain, threads=1)))


def test_it_decodes_the_same_latent(pipe: QuadPipeline) -> None:
    own, tiny = _picture(pipe), _picture(pipe, tiny_decoder=True)
    assert tiny.shape == own.shape
    assert np.abs(tiny - own).max() > 0
    np.testing.assert_array_equal(_picture(pipe, output_type="latent"), _picture(pipe, output_type="latent", tiny_decoder=True))
    np.testing.assert_array_equal(_picture(pipe, tiny_decoder=True), tiny)


def test_previews_by_it(pipe: QuadPipeline) -> None:
    seen: list[Any] = []

    def on_step(_: Any, __: int, ___: float, tensors: dict[str, Any]) -> None:
        seen.append(pipe.preview(tensors["denoised"], tiny_decoder=True))

    picture = pipe("a red house", task="text-to-image", sampler="ddim:4", tiny_decoder=True, callback_on_step_end=on_step).images[0]
    assert [preview.size for preview in seen] == [picture.size] * 4
    np.testing.assert_array_equal(np.asarray(seen[-1]), np.asarray(picture))  # the last step's clean latent is the picture's
    with pytest.raises(UsageError, match="preview: expected latents of one of the bundle's sizes"):
        pipe.preview(np.zeros((1, 4, 3, 3), np.float32), tiny_decoder=True)


@pytest.mark.parametrize("memory", ["balanced", "minimal"])
def test_under_every_memory_plan(bundle: Path, pipe: QuadPipeline, memory: str) -> None:
    other = QuadPipeline.from_pretrained(bundle, threads=1, memory=memory)
    np.testing.assert_allclose(_picture(other, tiny_decoder=True), _picture(pipe, tiny_decoder=True), atol=0.02)


def test_the_file_of_a_picture_says_it(pipe: QuadPipeline) -> None:
    assert "Decoder: tiny" in parameters_text(pipe("a house", tiny_decoder=True).facts[0])
    assert "Decoder" not in parameters_text(pipe("a house").facts[0])


def test_its_vectors_are_verified(bundle: Path, pipe: QuadPipeline) -> None:
    checks = verify(pipe, read_vectors(open_bundle(bundle)))
    assert [check for check in checks if not check.passes] == []
    assert any(TINY_DECODER in check.name for check in checks)


def test_a_bundle_without_one_says_so(tiny_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    with pytest.raises(UsageError, match="tiny_decoder: expected a bundle of quad build --tiny-decoder"):
        pipe("a house", tiny_decoder=True)
    with pytest.raises(UsageError, match="tiny_decoder: expected a bundle"):
        pipe.preview(np.zeros((1, 4, 4, 4), np.float32), tiny_decoder=True)
    with pytest.raises(UsageError, match="tiny_decoder: expected True or False, found 1"):
        pipe("a house", tiny_decoder=1)


def test_on_litert(request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build runs all of its graphs, and compares each with its network."""
    request = replace(request_, output=tmp_path / "phone", target="litert", precision="w8a16", adapters={}, samples=SAMPLES[:1])
    other = QuadPipeline.from_pretrained(_built(request, monkeypatch), threads=1)
    tiny = _picture(other, tiny_decoder=True)
    assert np.isfinite(tiny).all()
    assert (tiny != _picture(other)).any()


def test_on_openvino_with_one_of_each_size(request_: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"target": "openvino", "precision": "float", "adapters": {}, "samples": SAMPLES[:1], "size": "64,64x128"}
    other = QuadPipeline.from_pretrained(_built(replace(request_, output=tmp_path / "phone", **words), monkeypatch), threads=1)
    assert _picture(other, tiny_decoder=True, width=64, height=128).shape == (1, 128, 64, 3)
    assert _picture(other, tiny_decoder=True).shape == (1, 64, 64, 3)
