"""A build that groups its adapters: a graph each over the same weights, which engines run as the simulated networks do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quad.build.build import BuildRequest, BuildResult, build
from quad.compile.shared_weights import WEIGHTS_FILE
from quad.core.component_call import BASE_SOURCE
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import check_golden, unet_buffers
from quad.zoo.synthetic_adapter import write_amplified
from tests.build.samples import SAMPLES

ENGINE, LOUD = "openvino", "removal"


@pytest.fixture(scope="module")
def built(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    pytest.importorskip(ENGINE)
    place = tmp_path_factory.mktemp("grouped")
    write_amplified(adapter_files[LOUD], place / LOUD, 16.0)
    options: dict[str, Any] = {"target": ENGINE, "precision": "mixed:60", "distill_steps": 0, "max_profiles": 2, "max_loss": 1.0}
    return build(BuildRequest(model_dir, {**adapter_files, LOUD: place / LOUD}, place / "phone", samples=SAMPLES, **options))


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
    assert any("loss against a profile of its own" in line for line in built.profile.lines())


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
