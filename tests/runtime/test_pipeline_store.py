"""A pipeline with a device's store: what is installed is there from the start and hashed when used, what is damaged harms nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from quad import QuadPipeline
from quad.core.errors import VerificationError
from quad.runtime.adapters import file as adapter_file
from tests.conftest import Spy
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.serve.device import install_pack


def test_installed_adapters_are_there_from_the_start_and_a_damaged_one_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    install_pack(tmp_path, "fresh", (adapter_manifest("fresh", 2), adapter_tensors(5, 2)), 1)
    cut = install_pack(tmp_path, "cut", (adapter_manifest("cut", 2), adapter_tensors(6, 2)), 1)
    cut.write_bytes(cut.read_bytes()[:-1])
    alone = QuadPipeline.from_pretrained(tiny_bundle, threads=1)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path)
    assert set(pipe.adapters) == {*alone.adapters, "fresh"}
    assert len(pipe.notes) == 1
    assert str(cut) in pipe.notes[0]
    before = np.asarray(alone("a", seed=1).images[0])
    np.testing.assert_array_equal(np.asarray(pipe("a", seed=1).images[0]), before)
    pipe.set_adapters("fresh")
    assert (np.asarray(pipe("a", seed=1).images[0]) != before).any()


def test_an_installed_adapter_is_hashed_when_it_is_first_used(tiny_bundle: Path, tmp_path: Path, spy: Spy) -> None:
    """Opening costs no reading of packs; a byte that was turned is found before a picture is made of it, and harms no other adapter."""
    for name, seed in (("fresh", 5), ("rotten", 6)):
        pack = install_pack(tmp_path, name, (adapter_manifest(name, 2), adapter_tensors(seed, 2)), 1)
    pack.write_bytes(pack.read_bytes()[:-1] + b"\x7f")
    hashed = spy(adapter_file, "content_digest", lambda _tensors: 1)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path)
    assert (hashed, pipe.notes) == ([], ())
    with pytest.raises(VerificationError, match=f"{pack.name}: expected digest"):
        pipe.set_adapters("rotten")
    pipe.set_adapters("fresh")
    assert hashed == [1, 1]


def test_what_does_not_fit_is_told_at_the_start(tiny_bundle: Path, tmp_path: Path) -> None:
    stranger = msgspec.structs.replace(adapter_manifest("ink", 2), parents={"slots": "0" * 64, "profile": "0" * 64})
    install_pack(tmp_path, "ink", (stranger, adapter_tensors(5, 2)), 1)
    wide = {name: np.concatenate([array, array]) for name, array in adapter_tensors(6, 4).items()}
    install_pack(tmp_path, "wide", (adapter_manifest("wide", 8), wide), 1)
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path)
    assert "ink" not in pipe.adapters
    assert "wide" not in pipe.adapters
    assert pipe.notes[0].startswith("adapter 'ink' was packed for slots 00000000")
    assert "expected a rank from 1 to 4" in pipe.notes[1]


def test_a_bundle_without_a_store_beside_it_is_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, threads=1, store=tmp_path / "none")
    assert pipe.notes == ()
    assert pipe.adapters == QuadPipeline.from_pretrained(tiny_bundle, threads=1).adapters
