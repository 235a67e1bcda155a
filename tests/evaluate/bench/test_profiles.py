"""A bundle of several profiles: what loading another one's graph takes is told, and only there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from quad import QuadPipeline
from quad.evaluate.bench.footprint import rom_bytes
from quad.evaluate.bench.switching import bench_switch
from quad.runtime.bundle import open_bundle
from tests.admit.frozen import freeze, regroup
from tests.runtime.conftest import make_bundle


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundles")
    return freeze(make_bundle(place / "tiny"), place / "frozen")


def test_the_graph_of_another_profile_is_timed_and_counted(frozen: Path, tmp_path: Path) -> None:
    grouped = regroup(frozen, tmp_path / "grouped", widened=2.0)
    times = bench_switch(QuadPipeline.from_pretrained(grouped, threads=1), rounds=1)
    assert isinstance(times.graph_ms, float)
    assert times.graph_ms > 0
    assert bench_switch(QuadPipeline.from_pretrained(frozen, threads=1), rounds=1).graph_ms is msgspec.UNSET
    bundle = open_bundle(grouped)
    further = bundle.manifest.files["unet/wide.onnx"].size_bytes
    assert rom_bytes(bundle).components["unet"] == rom_bytes(open_bundle(frozen)).components["unet"] + further
