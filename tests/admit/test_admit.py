"""Admission by what a device has: the bundle, NumPy and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from quad.admit import sites, unet_forms
from quad.admit.admit import admit
from quad.admit.request import AdaptRequest
from quad.admit.trial import _most_distinct
from quad.core.errors import CompatibilityError
from quad.core.picture_size import graph_name
from quad.core.slots import UNET
from quad.core.storage.pack import read_pack
from quad.runtime.adapters.buffers import Buffers, pad, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import block_means, check_golden, read_probes, unet_buffers
from quad.runtime.pipeline import QuadPipeline
from tests.admit.frozen import regroup, write_later_lora
from tests.runtime.tiny_unet import LATTICE


def test_a_device_admits_and_runs_it(frozen: Path, tmp_path: Path) -> None:
    file = write_later_lora(tmp_path / "ink.safetensors")
    admitted = admit(AdaptRequest(frozen, "ink", file, output=tmp_path / "ink.qpack", task="ink", like="transform"))
    bundle, pack = open_bundle(frozen), read_pack(admitted.pack)
    assert admitted.trial["sites"] == 1
    assert any("--base" in line for line in admitted.unchecked)
    # B A as integers is the file's own, to the lattice's steps.
    floats = load_file(file)
    for slot in bundle.slots.slots:
        ours, theirs = (
            (b.reshape(len(b), -1).astype(np.float64) @ a.reshape(len(a), -1))
            for a, b in (
                (pack.tensors[slot.a_name] * LATTICE.scale[0], pack.tensors[slot.b_name] * LATTICE.scale[0]),
                (floats[f"unet.{slot.path}.lora_A.weight"], floats[f"unet.{slot.path}.lora_B.weight"]),
            )
        )
        assert np.abs(ours - theirs).max() < 2e-3
    session = open_engine("ort", (), bundle.manifest.precision).load(bundle.graph("unet"), 1)
    session.bind(unet_buffers(bundle, Buffers(pad(pack.tensors, zero_buffers(bundle.slots)))))
    check_golden(session, bundle, pack.manifest)
    pipe = QuadPipeline.from_pretrained(frozen, threads=1)
    pipe.load_lora_weights(admitted.pack)
    assert pipe.tasks["ink"].adapter == "ink"


def test_an_activation_beyond_its_range_refuses_it(frozen: Path, tmp_path: Path) -> None:
    loud = write_later_lora(tmp_path / "loud.safetensors", 1.5)
    with pytest.raises(CompatibilityError, match=r"1 that lose more: mid\.to_q\.in \(\S+% of its energy"):
        admit(AdaptRequest(frozen, "ink", loud, output=tmp_path / "ink.qpack"))
    assert not (tmp_path / "ink.qpack").exists()


@pytest.mark.parametrize(("factor", "group"), [(0.3, msgspec.UNSET), (1.5, 1)])
def test_of_several_groups_it_gets_the_first_that_holds_it(factor: float, group: Any, frozen: Path, tmp_path: Path) -> None:
    root = regroup(frozen, tmp_path / "grouped", widened=16.0)
    file = write_later_lora(tmp_path / "ink.safetensors", factor)
    admitted = admit(AdaptRequest(root, "ink", file, output=tmp_path / "ink.qpack", task="ink", like="transform"))
    assert (admitted.manifest.group, admitted.manifest.parents["profile"]) == (group, open_bundle(root).manifest.parents["profile"])
    pipe = QuadPipeline.from_pretrained(root, threads=1)
    pipe.set_adapters(pipe.load_lora_weights(admitted.pack))
    check_golden(pipe.graph(graph_name(UNET, None, admitted.manifest.group_number)), pipe.bundle, admitted.manifest)


def test_what_a_louder_groups_members_lose_in_this_one_excuses_nobody(frozen: Path, tmp_path: Path) -> None:
    """They never run in its graph."""
    root = regroup(frozen, tmp_path / "grouped", widened=16.0, members=("sketch",), louder=10)
    bundle = open_bundle(root).of_group(0)
    with bundle.graph_to_load(UNET) as graph:
        buffers = unet_buffers(bundle, AdapterStore(bundle).buffers("sketch"))
        assert max(use.lost for use in sites.ObservedGraph(graph).uses(read_probes(bundle), buffers).values()) > 0.5
    file = write_later_lora(tmp_path / "ink.safetensors", 1.5)
    assert admit(AdaptRequest(root, "ink", file, output=tmp_path / "ink.qpack")).manifest.group == 1


def test_an_adapter_that_no_group_holds_is_refused(frozen: Path, tmp_path: Path) -> None:
    root = regroup(frozen, tmp_path / "grouped", widened=1.1)
    with pytest.raises(CompatibilityError, match=r"1 that lose more: mid\.to_q\.in"):
        admit(AdaptRequest(root, "ink", write_later_lora(tmp_path / "ink.safetensors", 1.5), output=tmp_path / "ink.qpack"))
    assert not (tmp_path / "ink.qpack").exists()


def test_without_the_library_that_reads_ranges_that_is_said(frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "find_spec", lambda name: None)
    file = write_later_lora(tmp_path / "ink.safetensors")
    admitted = admit(AdaptRequest(frozen, "ink", file, output=tmp_path / "ink.qpack"))
    assert "ranges of activations: they are read by ONNX Runtime, which is not installed" in admitted.unchecked
    assert admitted.trial["sites"] == 0


def test_how_many_calls_run_at_once_changes_no_byte(frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet_forms, "_WORTH_LOADING_TWICE_BYTES", 0)
    lora, packs = write_later_lora(tmp_path / "ink.safetensors"), []
    for at_once in (1, 2):
        output = tmp_path / f"{at_once}.qpack"
        packs.append(admit(AdaptRequest(frozen, "ink", lora, output=output, at_once=at_once)).pack.read_bytes())
    assert packs[0] == packs[1]


def test_the_golden_call_is_the_one_that_all_runs_would_tell() -> None:
    """Calls that cannot be the farthest from all others are not run with the bundle's adapters; the choice is the same."""
    runs = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        zero, adapted, *others = (list(rng.standard_normal((4, 1, 2, 4, 4)).round(int(rng.integers(0, 3)))) for _ in range(5))

        def bundled(probe: int, others: list[list[Any]] = others) -> dict[str, Any]:
            nonlocal runs
            runs += 1
            return {str(place): outputs[probe] for place, outputs in enumerate(others)}

        def gap(index: int, zero: Any = zero, adapted: Any = adapted, others: Any = others) -> float:
            means = block_means(adapted[index])
            nearest = min(np.abs(means - block_means(outputs[index])).max() for outputs in (zero, *others))
            return float(nearest / np.sqrt(np.square(means).mean()))

        chosen, answers = _most_distinct(adapted, zero, bundled)
        assert chosen == max(range(4), key=gap)
        assert answers["1"] is others[1][chosen]
    assert runs < 4 * 50
