"""An adapter of a further group is merged into that group's graph: its ranges, its numbers, and weights on the lattice to half a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quad.core.decibels import array_sqnr_db
from quad.core.slots import UNET
from quad.export.bake.bake import bake
from quad.export.bake.request import BakeRequest, BakeResult
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import read_probes, unet_buffers
from tests.admit.frozen import freeze, regroup

WIDENED, LOUDER = 8.0, 64


@pytest.fixture(scope="module")
def grouped(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two groups; `sketch` is loud, and of the second."""
    place = tmp_path_factory.mktemp("groups")
    return regroup(freeze(tiny_bundle, place / "one"), place / "two", WIDENED, ("sketch",), LOUDER)


def baked(grouped: Path, place: Path, adapter: str, weight: float = 1.0) -> BakeResult:
    return bake(BakeRequest(bundle=grouped, adapters={adapter: weight}, output=place / adapter, weight_bits=16))


def slot_outputs(bundle: Bundle, group: int, name: str, weight: float = 1.0) -> np.ndarray:
    """The graph with slots of a group, on the stored calls."""
    session = open_engine("ort", (), bundle.manifest.precision).load(bundle.graph(UNET, None, group), 1)
    store = AdapterStore(bundle)
    session.bind(unet_buffers(bundle, store.mix([name], [weight])[0]))
    return np.stack([session.run(call) for call in read_probes(bundle)])


def merged_outputs(result: BakeResult) -> np.ndarray:
    bundle = open_bundle(result.bundle)
    session = open_engine("ort", (), bundle.manifest.precision).load(bundle.graph(UNET), 1)
    return np.stack([session.run(call) for call in read_probes(bundle)])


def site_step(graph: Path) -> float:
    """The step of the one activation that is rounded."""
    model = onnx.load(graph).graph
    (quantizer,) = (node for node in model.node if node.op_type == "QuantizeLinear")
    return float(next(numpy_helper.to_array(each) for each in model.initializer if each.name == quantizer.input[1]))


@pytest.mark.parametrize(("name", "group"), [("sketch", 1), ("transform", 0)])
def test_the_merged_graph_is_its_group_s(grouped: Path, tmp_path: Path, name: str, group: int) -> None:
    result, source = baked(grouped, tmp_path, name), open_bundle(grouped)
    merged = open_bundle(result.bundle)
    assert site_step(merged.graph(UNET)) == site_step(source.graph(UNET, None, group))
    assert merged.group_count == 1
    assert array_sqnr_db(slot_outputs(source, group, name), merged_outputs(result)) > 60
    assert result.worst <= 1 + 1e-5
    assert result.likeness[UNET].effect_gain == pytest.approx(1.0, abs=1e-3)


def test_the_other_group_s_graph_would_cut_it_off(grouped: Path, tmp_path: Path) -> None:
    source = open_bundle(grouped)
    narrow, wide = (slot_outputs(source, group, "sketch") for group in (0, 1))
    assert array_sqnr_db(wide, narrow) < 30
    assert array_sqnr_db(narrow, merged_outputs(baked(grouped, tmp_path, "sketch"))) < 30


def test_a_sum_with_one_of_the_first_group_is_merged_into_the_wider_graph(grouped: Path, tmp_path: Path) -> None:
    request = BakeRequest(bundle=grouped, adapters={"transform": 0.5, "sketch": 0.25}, output=tmp_path / "both", weight_bits=16)
    result, source = bake(request), open_bundle(grouped)
    assert site_step(open_bundle(result.bundle).graph(UNET)) == site_step(source.graph(UNET, None, 1))
    assert result.worst <= 1 + 1e-5
