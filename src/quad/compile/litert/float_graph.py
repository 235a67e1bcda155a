"""Graphs of floats for LiteRT: nothing rounded, or weights of 8 bits alone, whose inputs LiteRT rounds as it runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from quad.compile.passes import Observer
from quad.compile.placement.integer_graph import IntegerGraph
from quad.compile.placement.qdq import place_float, place_qdq
from quad.compile.targets import Target
from quad.core.encoding import Encoding
from quad.core.ports import Port, Ports
from quad.core.slots import SlotTable
from quad.core.tensor_names import CONSTANT_ROLES, role_of


def place_weights(model: ir.Model, profile: Mapping[str, Encoding], target: Target, observer: Observer) -> IntegerGraph:
    """A graph whose activations, inputs and outputs are floats; the model is changed in place.

    Args:
        profile: encodings of weights, none for a float graph.
    """
    bare = msgspec.structs.replace(target, integer=(), passes=())
    placed = place_qdq(model, profile, SlotTable(slots=()), bare, observer) if profile else place_float(model, (), observer)
    graph = placed.model.graph

    def ports(values: tuple[ir.Value, ...]) -> dict[str, Port]:
        return {str(value.name): Port((value.dtype or ir.DataType.FLOAT).numpy().name) for value in values}

    inputs = ports(tuple(value for value in graph.inputs if role_of(str(value.name)) not in CONSTANT_ROLES))
    return IntegerGraph(model=placed.model, edges={}, constants={}, ports=Ports(inputs, ports(tuple(graph.outputs))))
