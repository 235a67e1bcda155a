"""Graphs as the targets' passes leave them: merged they answer as the network does, and have no slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.placement.qdq import place_float
from quad.compile.targets import load_target
from quad.core.decibels import array_sqnr_db
from quad.core.errors import UnsupportedError
from quad.core.profile import Profile
from quad.export.bake.graph import merge_graph
from quad.export.bake.updates import slot_updates
from quad.lora.fit.slot_inputs import slot_inputs
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.engines.engine import SwitchSession, open_engine
from tests.compile.placement.test_integer_readers import ENGINES, Case, placed

WEIGHTS = {"transform": 0.8, "removal": -0.5}


def _session(model: ir.Model, target: str, precision: str, folder: Path) -> SwitchSession:
    folder.mkdir()
    ir.save(model, folder / "model.onnx")
    return open_engine(ENGINES[target], (), precision).load(folder / "model.onnx", 1)


def _parts(case: Case) -> dict[str, Buffers]:
    return {name: Buffers(integers) for name, integers in zip(WEIGHTS, case.integers, strict=False)}


@pytest.fixture(scope="module", params=[*ENGINES])
def mixed(case: Case, request: pytest.FixtureRequest) -> tuple[str, ir.Model]:
    return request.param, placed(case, load_target(request.param))


def test_a_float_graph_is_the_network_of_the_weighted_sum(tiny: Any, tmp_path: Path) -> None:
    slots = {name: slot_inputs(adapter, tiny.table) for name, adapter in zip(WEIGHTS, tiny.adapters, strict=True)}
    updates = slot_updates({name: Buffers(part) for name, part in slots.items()}, WEIGHTS, tiny.table, Profile(encodings={}))
    model = place_float(tiny.graph.clone(), load_target("cpu").passes).model
    merge_graph(model, tiny.table, updates)
    # Rank channels side by side: the network's own slots have room for one adapter alone.
    network, weights = tiny.network, {}
    for path, update in updates.items():
        weights[path] = (layer := network.unet.get_submodule(path)).weight.data
        layer.weight.data = weights[path] + weights[path].new_tensor(update)  # in place, all copies of the network would have it
    expected = tiny.torch_output({})
    for path, weight in weights.items():
        network.unet.get_submodule(path).weight.data = weight
    assert array_sqnr_db(expected, _session(model, "cpu", "float", tmp_path / "merged").run(tiny.inputs)) > 100


def test_integer_graphs_answer_as_with_slots_and_have_none(case: Case, mixed: tuple[str, ir.Model], tmp_path: Path) -> None:
    target, model = mixed
    with_slots = _session(model, target, "mixed:50", tmp_path / "slots")
    updates = slot_updates(_parts(case), {"transform": 1.0, "removal": 0.0}, case.table, case.profile)
    after = model.clone()
    weights = merge_graph(after, case.table, updates)
    assert weights.keys() == updates.keys()
    assert all(weight.error <= weight.bound * (1 + 1e-5) for weight in weights.values())
    assert [value.name for value in after.graph.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert len(after.graph) < len(model.graph)
    merged = _session(after, target, "mixed:50", tmp_path / "merged")
    with_slots.bind(case.integers[0])
    assert array_sqnr_db(with_slots.run(case.tiny.inputs), merged.run(case.tiny.inputs)) > 25


def test_without_an_update_it_is_the_base_bit_for_bit(case: Case, mixed: tuple[str, ir.Model], tmp_path: Path) -> None:
    target, model = mixed
    with_slots = _session(model, target, "mixed:50", tmp_path / "slots")
    after = model.clone()
    assert merge_graph(after, case.table, {}) == {}
    with_slots.bind(case.integers[2])
    merged = _session(after, target, "mixed:50", tmp_path / "merged")
    assert np.array_equal(with_slots.run(case.tiny.inputs), merged.run(case.tiny.inputs))


def test_another_graph_is_refused(case: Case) -> None:
    model = placed(case, load_target("cpu"))
    up = next(value for value in model.graph.inputs if str(value.name).endswith("lora_B"))
    model.graph.outputs.append(up)
    with pytest.raises(UnsupportedError, match="slot input"):
        merge_graph(model, case.table, {})
