"""Laws of the float graph: it is the torch network, and every slot input of it matters (laws 2, 4, 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from quad.compile.export import GraphSpec, export_graph
from quad.compile.graph_specs import text_spec, vae_specs
from quad.compile.passes.integers.remove_sites import is_site
from quad.compile.placement.qdq import place_float
from quad.core.decibels import relative_error
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.base.open import text_module, vae_decoder_module, vae_encoder_module
from quad.model.slots.attention import add_sites
from quad.model.slots.layers import weights_of
from quad.runtime.engines.ort import OrtSession, session_options


@pytest.fixture(scope="module")
def session(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> OrtSession:
    path = tmp_path_factory.mktemp("unet") / "model.onnx"
    ir.save(place_float(tiny.graph.clone()).model, path)
    return OrtSession(path, session_options("float", 1))


def test_the_graph_contract_holds(tiny: Any) -> None:
    assert [value.name for value in tiny.graph.graph.inputs] == [
        "sample", "timestep", "encoder_hidden_states", *tiny.table.input_shapes()]  # fmt: skip
    assert [value.name for value in tiny.graph.graph.outputs] == ["out_sample"]


def test_every_site_and_weight_keeps_its_profile_name(tiny: Any) -> None:
    assert {node.attributes["name"].as_string() for node in tiny.graph.graph if is_site(node)} == set(tiny.network.sites)
    assert set(weights_of(tiny.network)) <= set(tiny.graph.graph.initializers)


@pytest.mark.parametrize("index", [None, 0, 1])
def test_float_graph_is_the_torch_network(tiny: Any, session: OrtSession, index: int | None) -> None:
    adapter = None if index is None else tiny.adapters[index]
    session.bind(slot_inputs(adapter, tiny.table))
    assert relative_error(session.run(tiny.inputs), tiny.torch_output(slot_inputs(adapter, tiny.table))) <= 1e-4


def test_every_slot_input_matters(tiny: Any, session: OrtSession) -> None:
    generator = np.random.default_rng(0)
    shapes = tiny.table.input_shapes()
    slots = {name: (0.1 * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    session.bind(slots)
    before = session.run(tiny.inputs)
    for name in shapes:
        session.bind({**slots, name: slots[name] * 2})
        assert np.abs(session.run(tiny.inputs) - before).max() > 1e-7, name
    session.bind(slots)
    np.testing.assert_array_equal(session.run(tiny.inputs), before)


@pytest.mark.parametrize("component", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_the_other_graphs_are_their_modules(tiny: Any, component: str, tmp_path: Path) -> None:
    module = {"text_encoder": text_module, "vae_encoder": vae_encoder_module, "vae_decoder": vae_decoder_module}[component](tiny.base)
    add_sites(module)
    spec = {"text_encoder": text_spec(tiny.base, tiny.table), **vae_specs(tiny.base)}[component]
    ir.save(place_float(export_graph(module, spec)).model, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = module(*spec.inputs.values()).numpy()
    found = OrtSession(tmp_path / "model.onnx", session_options("float", 1)).run({k: v.numpy() for k, v in spec.inputs.items()})
    assert relative_error(found, expected) <= 1e-4


def test_a_graph_spec_lists_slots_last(tiny: Any) -> None:
    spec = GraphSpec(component="unet", inputs={"x": torch.zeros(1)}, output="y", slots={"b": torch.zeros(1), "a": torch.zeros(1)})
    assert spec.names == ("x", "b", "a")
