"""Which type the denoiser's floats are computed in: what is asked for, what the engine has, what the bundle was proven with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quad.core.errors import CompatibilityError, UsageError
from quad.core.manifest import Bf16Proof, BundleManifest
from quad.runtime import QuadPipeline, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.float_types import denoiser_engine

PROOF = Bf16Proof(engine="fast", output_db=30.0, f32_db=31.0)


@dataclass(frozen=True)
class FakeEngine:
    name: str = "fast"

    def load(self, model_file: Path, threads: int, lean: bool = False) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class FakeShortEngine(FakeEngine):
    has_it: bool = True

    def in_bf16(self) -> FakeEngine | None:
        return FakeEngine("fast in bf16") if self.has_it else None


@pytest.fixture
def manifest(tiny_bundle: Path) -> BundleManifest:
    return open_bundle(tiny_bundle).manifest


@pytest.mark.parametrize(
    ("word", "engine", "proofs", "found"),
    [
        ("auto", FakeShortEngine(), (PROOF,), "bf16"),
        ("auto", FakeShortEngine(), msgspec.UNSET, "f32"),
        ("auto", FakeShortEngine("other"), (PROOF,), "f32"),
        ("auto", FakeShortEngine(has_it=False), (PROOF,), "f32"),
        ("auto", FakeEngine(), (PROOF,), "f32"),
        ("f32", FakeShortEngine(), (PROOF,), "f32"),
        ("bf16", FakeShortEngine(), msgspec.UNSET, "bf16"),
    ],
)
def test_auto_takes_bf16_where_it_is_there_and_proven(
    manifest: BundleManifest, word: str, engine: FakeEngine, proofs: Any, found: str
) -> None:
    denoiser = denoiser_engine(engine, word, msgspec.structs.replace(manifest, bf16=proofs))
    assert (denoiser.float_type, denoiser.engine.name) == (found, "fast in bf16" if found == "bf16" else engine.name)


@pytest.mark.parametrize("engine", [FakeEngine("ort"), FakeShortEngine("ort", has_it=False)])
def test_an_engine_or_processor_without_it_refuses_in_one_line(manifest: BundleManifest, engine: FakeEngine) -> None:
    says = "^--float: expected f32, all that engine ort has here, found bf16; leave it out$"
    with pytest.raises(CompatibilityError, match=says):
        denoiser_engine(engine, "bf16", manifest)


def test_onnx_runtime_is_such_an_engine(manifest: BundleManifest) -> None:
    with pytest.raises(CompatibilityError, match="engine ort has here"):
        denoiser_engine(open_engine("ort", (), "w8a16"), "bf16", manifest)


def test_another_word_is_wrong_usage(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"^--float: expected auto \| f32 \| bf16, found 'half'"):
        QuadPipeline.from_pretrained(tiny_bundle, float_type="half")


def test_an_unproven_bundle_is_computed_in_f32(tiny_bundle: Path) -> None:
    assert QuadPipeline.from_pretrained(tiny_bundle).float_type == "f32"
