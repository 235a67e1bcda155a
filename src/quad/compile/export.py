"""Torch modules to ONNX, every Site kept as a node `quad::Site(x) {name}` for the placement to replace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import values
from torch import Tensor, nn

from quad.compile.lazy_weights import lazy_weight, placeholders
from quad.compile.one_trace import as_captured, captured
from quad.compile.operator_table import one_operator_table
from quad.compile.passes import Observer, tidy, unobserved
from quad.core.errors import UnsupportedError, mismatch
from quad.core.picture_size import PictureSize, graph_name
from quad.core.tensor_names import Role, TensorName, weight_name
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import layers_of, tables_of
from quad.model.slots.sites import SITE_OP, exporting

OPSET = 21
SITE_DOMAIN = "quad"
SITE_TYPE = "Site"

_NOISY = "torch.onnx._internal.exporter._registration"


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """Name and example inputs of a graph.

    Args:
        component: `unet`, `text_encoder`, `vae_encoder` or `vae_decoder`.
        size: of its pictures, where that is not the bundle's first.
        inputs: example inputs by graph name, in the order of `forward`; their shapes become the graph's.
        slots: example slot inputs by graph name, in slot order; passed to `forward` as the dict `slots` unless empty.
        output: name of the one output.
    """

    component: str
    inputs: Mapping[str, Tensor]
    output: str
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    size: PictureSize | None = None

    @property
    def graph(self) -> str:
        """Its name among all graphs of a bundle."""
        return graph_name(self.component, self.size)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.inputs, *self.slots)


def export_graph(module: nn.Module, spec: GraphSpec, observer: Observer = unobserved) -> ir.Model:
    """The module as an ONNX graph (opset 21, float32, static shapes) with its Sites and its parameters' names.

    Args:
        observer: told of the graph as torch wrote it, and after each pass.

    Raises:
        UnsupportedError: torch cannot trace the module or has no ONNX form for one of its operators.
    """
    model = traced(module, spec)
    observer("exported", model)
    return tidy(model, observer)


def traced(module: nn.Module, spec: GraphSpec) -> ir.Model:
    """The module as torch writes it, with its edges and its parameters named; nothing is removed but squeezes that do nothing.

    Raises:
        UnsupportedError: as `export_graph`.
    """
    kwargs = {"slots": dict(spec.slots)} if spec.slots else {}
    with placeholders(module) as held:
        model = _model(module, spec, kwargs)
        _name_edges(model.graph, spec)
        _name_weights(model.graph, module, held)
    _drop_idle_squeezes(model.graph)
    model.graph.name = spec.component
    model.producer_name, model.producer_version = "quad", ""
    return model


def _model(module: nn.Module, spec: GraphSpec, kwargs: Mapping[str, Any]) -> ir.Model:
    try:
        with _quiet(), exporting(), one_operator_table(), torch.no_grad():
            arguments = tuple(spec.inputs.values())
            one = captured(module, arguments, kwargs, OPSET)
            with nullcontext() if one is None else as_captured():
                program = torch.onnx.export(
                    module if one is None else one, arguments, kwargs=dict(kwargs), dynamo=True, opset_version=OPSET, optimize=False,
                    verbose=False, custom_translation_table={SITE_OP: _site_node},
                )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(mismatch(spec.component, "a network torch can export to ONNX", reason, "report its operators")) from error
    if program is None:
        raise UnsupportedError(mismatch(spec.component, "an exported program", "none", "use torch 2.9 or later"))
    model: ir.Model = program.model
    return model


def _name_edges(graph: ir.Graph, spec: GraphSpec) -> None:
    shapes = [tuple(value.shape or ()) for value in graph.inputs]
    expected = [tuple(tensor.shape) for tensor in (*spec.inputs.values(), *spec.slots.values())]
    if shapes != expected or len(graph.outputs) != 1:
        raise UnsupportedError(mismatch(spec.component, f"{len(expected)} inputs of given shapes, 1 output",
                                        f"{len(shapes)} inputs, {len(graph.outputs)} outputs", "check the module's forward"))  # fmt: skip
    for value, name in zip(graph.inputs, spec.names, strict=True):
        value.name = name
    graph.outputs[0].name = spec.output


def _name_weights(graph: ir.Graph, module: nn.Module, held: Mapping[int, HeldWeight]) -> None:
    """Weights and biases of sited layers, and token tables, by the profile's names, wherever the exported module holds them.

    Args:
        held: of `placeholders`; each gives way to the weight it stands in for.
    """
    values = {id(tensor): graph.initializers[name] for name, tensor in module.named_parameters(remove_duplicate=False)
              if name in graph.initializers}  # fmt: skip
    parameters = [
        (str(TensorName(path, kind)), getattr(layer, kind))
        for path, layer in layers_of(module).items()
        for kind in (Role.WEIGHT, Role.BIAS)
    ]
    parameters += [(weight_name(path), table.weight) for path, table in tables_of(module).items()]
    for name, tensor in parameters:
        if id(tensor) in values:
            values[id(tensor)].name = name
            if id(tensor) in held:
                values[id(tensor)].const_value = lazy_weight(held[id(tensor)], name)


def _drop_idle_squeezes(graph: ir.Graph) -> None:
    """torch squeezes an axis only where its length is 1; the exporter writes the operator down either way, and no engine takes it."""
    for node in [node for node in graph if node.op_type == "Squeeze"]:
        squeezed, output = node.inputs[0], node.outputs[0]
        if squeezed is not None and squeezed.shape is not None and squeezed.shape == output.shape:
            output.replace_all_uses_with(squeezed)
            graph.remove(node, safe=True)


def _schema() -> onnx.defs.OpSchema:
    formal = onnx.defs.OpSchema.FormalParameter
    return onnx.defs.OpSchema(
        SITE_TYPE, SITE_DOMAIN, 1, inputs=[formal("x", "T")], outputs=[formal("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[onnx.defs.OpSchema.Attribute("name", onnx.defs.OpSchema.AttrType.STRING, required=True)],
    )  # fmt: skip


_SITE = values.Op(values.Opset(SITE_DOMAIN, 1), SITE_TYPE, _schema())


def _site_node(x: onnxscript.FLOAT, name: str) -> onnxscript.FLOAT:
    return _SITE(x, name=name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and on its own use of deprecated calls: neither is the user's to mend."""
    logger = logging.getLogger(_NOISY)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)
