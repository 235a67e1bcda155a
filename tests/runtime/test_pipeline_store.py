"""A pipeline with a device's store: what is installed is there from the start, and what is damaged harms nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quad import QuadPipeline
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.serve.device import install_pack


def test_installed_adapters_are_there_from_the_start_and_a_damaged_one_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    install_pack(tmp_path, "fresh", (adapter_manifest("fresh", 2), adapter_tensors(5, 2)), 1)
    cut = install_pack(tmp_path, "cut", (adapter_manifest("cut", 2), adapter_tensors(6, 2)), 1)
    cut.write_bytes(cut.read_bytes()[:-1] + b"\x7f")
    alone = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path)
    assert set(pipe.adapters) == {*alone.adapters, "fresh"}
    assert len(pipe.notes) == 1
    assert str(cut) in pipe.notes[0]
    before = np.asarray(alone("a", seed=1).images[0])
    np.testing.assert_array_equal(np.asarray(pipe("a", seed=1).images[0]), before)
    pipe.set_adapters("fresh")
    assert (np.asarray(pipe("a", seed=1).images[0]) != before).any()


def test_a_bundle_without_a_store_beside_it_is_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path / "none")
    assert pipe.notes == ()
    assert pipe.adapters == QuadPipeline.from_pretrained(tiny_bundle, threads=1).adapters
