"""A build that groups its adapters: a graph each over the same weights, which engines run as the simulated networks do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.admit.aligned import Admission, AlignedAdapter
from quad.admit.request import AdaptRequest
from quad.admit.slots import Fitted
from quad.align.adapt import adapt
from quad.align.align import OpenedBase
from quad.build.build import BuildRequest, BuildResult, build
from quad.compile.shared_weights import WEIGHTS_FILE
from quad.core.component_call import BASE_SOURCE
from quad.core.float_type import F32
from quad.core.picture_size import graph_name
from quad.core.slots import UNET
from quad.core.storage.pack import read_pack
from quad.lora.read import FloatAdapter
from quad.runtime.adapters.buffers import pad, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import check_golden, unet_buffers
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.synthetic_adapter import write_amplified
from tests.build.samples import SAMPLES

ENGINE, LOUD = "openvino", "removal"


@pytest.fixture(scope="module")
def files(adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The adapters, one of them far too loud."""
    place = tmp_path_factory.mktemp("louder") / LOUD
    write_amplified(adapter_files[LOUD], place, 16.0)
    return {**adapter_files, LOUD: place}


@pytest.fixture(scope="module")
def built(model_dir: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    pytest.importorskip(ENGINE)
    options: dict[str, Any] = {"target": ENGINE, "precision": "mixed:60", "distill_steps": 0, "max_profiles": 2, "max_loss": 1.0}
    return build(BuildRequest(model_dir, files, tmp_path_factory.mktemp("grouped") / "phone", samples=SAMPLES, **options))


@pytest.fixture(scope="module")
def bundle(built: BuildResult) -> Bundle:
    return open_bundle(built.bundle)


def test_every_adapter_is_in_one_group_and_tried_in_its_graph(built: BuildResult, bundle: Bundle, adapter_files: dict[str, Path]) -> None:
    report = built.to_json()["profile"]["groups"]
    groups = [set(profile["adapters"]) for profile in report["profiles"]]
    assert len(groups) == bundle.group_count == 2, report
    assert set.union(*groups) == {*adapter_files, BASE_SOURCE} == set(report["losses"]) == set(report["together"])
    assert max(report["losses"].values()) < max(report["together"].values())
    store = AdapterStore(bundle)
    for number, (graph, members) in enumerate(zip(("unet", "unet.group-2"), groups, strict=True)):
        assert set(built.smoke[graph]) == members | {BASE_SOURCE}
        assert all(store.manifest(name).group_number == number for name in members - {BASE_SOURCE})
    assert (groups[1], BASE_SOURCE in groups[0]) == ({LOUD}, True)
    lines = built.profile.lines()
    assert any("loss against a profile of its own" in line for line in lines)
    row = next(line for line in lines if line.strip().startswith(f"{LOUD} "))  # of the N x N table: its own profile is behind a bar
    assert [len(cells.split()) for cells in row.replace(LOUD, "").split("|")] == [len(group) for group in groups]


def test_each_groups_graph_gives_its_adapters_golden_outputs(bundle: Bundle) -> None:
    store = AdapterStore(bundle)
    for group in range(bundle.group_count):
        session = open_engine(ENGINE, (), bundle.manifest.precision).load(bundle.graph("unet", None, group), 1)
        for name in (name for name in store.names if store.manifest(name).group_number == group):
            session.bind(unet_buffers(bundle, store.buffers(name)))
            check_golden(session, bundle, store.manifest(name))


def test_a_further_graph_costs_little_beside_the_weights(bundle: Bundle) -> None:
    sizes = {name: os.path.getsize(bundle.root / name) for name in bundle.manifest.components["unet"].files}
    assert set(sizes) == {"unet/model.onnx", "unet/model.group-2.onnx", f"unet/{WEIGHTS_FILE}"}
    assert sizes["unet/model.group-2.onnx"] < 0.5 * sizes["unet/model.onnx"]


@pytest.fixture
def aligned(monkeypatch: pytest.MonkeyPatch) -> dict[int, AlignedAdapter]:
    """What the base made of an adapter, by the number of the group."""
    results: dict[int, AlignedAdapter] = {}
    align = OpenedBase.align

    def watched(base: OpenedBase, admission: Admission, adapter: FloatAdapter, fitted: Fitted) -> AlignedAdapter:
        results[admission.bundle.group] = align(base, admission, adapter, fitted)
        return results[admission.bundle.group]

    monkeypatch.setattr(OpenedBase, "align", watched)
    return results


@pytest.mark.parametrize(("name", "steps"), [(LOUD, 0), ("transform", 1)])
def test_with_the_base_an_adapter_is_made_for_each_group_and_gets_the_nearest(
    name: str, steps: int, built: BuildResult, files: dict[str, Path], aligned: dict[int, AlignedAdapter], model_dir: Path, tmp_path: Path
) -> None:
    request = AdaptRequest(built.bundle, "again", files[name], output=tmp_path / "again.qpack", like=name, task="again", base=model_dir)
    again, bundle = adapt(replace(request, samples=SAMPLES, distill_steps=steps)), open_bundle(built.bundle)
    nearness = {group: one.measured.output_db for group, one in aligned.items() if one.measured is not None}
    assert again.manifest.group_number == max(nearness, key=nearness.__getitem__)
    # With the rounded weights of the bundle, which the first group's graph alone has by name; in that group the loud one is all but lost.
    assert {group: one.alignment.get("steps") for group, one in aligned.items()}.items() >= {(1, steps)}
    assert name == LOUD or aligned[0].alignment["steps"] == steps
    if not steps:  # the same integers whichever the group
        tensors, buffers = pad(read_pack(again.pack).tensors, zero_buffers(bundle.slots)), AdapterStore(bundle).buffers(name)
        for slot_input in buffers:
            np.testing.assert_array_equal(tensors[slot_input], buffers[slot_input], slot_input)
    pipe = QuadPipeline.from_pretrained(built.bundle, threads=1, float_type=F32)
    pipe.set_adapters(pipe.load_lora_weights(again.pack))
    check_golden(pipe.graph(graph_name(UNET, None, again.manifest.group_number)), bundle, again.manifest)
