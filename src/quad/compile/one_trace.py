"""A network captured for ONNX in one trace; torch takes three, and runs the graph once more to look for mixed types.

    torch.onnx.export    trace in training form, trace for what changes in place, trace decomposed, run for types, translate
    here                 trace decomposed, translate

The graph is the same but for the names of constants that are written in code. Only a network that changes tensors in place needs the other
traces: it goes torch's way, and so does one that this way cannot capture.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, _trace, exported_program
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion

Decompositions = dict[Any, Callable[..., Any]]  # of operators, by operator
_log = logging.getLogger(__name__)


def captured(module: nn.Module, arguments: tuple[Tensor, ...], keywords: Mapping[str, Any], opset: int) -> ExportedProgram | None:
    """The network as operators that have an ONNX form of this opset; None where it has to go torch's way.

    Args:
        arguments, keywords: examples, of which shapes and types count.
    """
    composites, others = _decompositions(opset)

    def decomposing(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        trace = make_fx(function, decomposition_table=others, **{**options, "pre_dispatch": False})

        def run(*flat: Any) -> Any:
            with exported_program._override_composite_implicit_decomp(composites):
                return trace(*flat)

        return run

    try:
        with _replaced(_trace, "make_fx", decomposing):
            program = torch.export.export(module, arguments, dict(keywords), strict=False)
    except Exception as error:  # whatever it is, torch's own way meets it too, and says it in its words
        _log.debug("no capture in one trace: %s", error)
        return None
    if not all(_is_functional(node) for node in program.graph.nodes):
        return None
    program.graph.eliminate_dead_code()
    return program


@contextmanager
def as_captured() -> Iterator[None]:
    """Inside the block `torch.onnx.export` takes a program of `captured` as it is."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(_fx_passes, "decompose_with_registry", lambda program, registry: program))
        stack.enter_context(_replaced(type_promotion._TypePromotionInterpreter, "run_node", _promoted))
        yield


@functools.cache
def _decompositions(opset: int) -> tuple[Decompositions, Decompositions]:
    """Of composite operators, which torch takes apart by itself unless told not to, and of the others; none of what ONNX has a form of."""
    operators = set(_decomp.get_onnx_implemented_overloads(ONNXRegistry.from_torchlib(opset_version=opset)))
    table: Any = _decomp.create_onnx_friendly_decomposition_table(operators)
    composites, others = exported_program._split_decomp_table_to_cia_and_python_decomp(dict(table))
    return composites, others


def _is_functional(node: torch.fx.Node) -> bool:
    """Does it leave its inputs as they are, by its operator's own word."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OperatorBase):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _promoted(interpreter: Any, node: torch.fx.Node) -> Any:
    """One step of the search for mixed types, with the result that the trace has noted, which is not computed again."""
    with interpreter._set_current_node(node):
        rule = type_promotion.get_type_promotion_rule(node, interpreter.type_promotion_table)
        if rule is not None:
            interpreter._maybe_promote_node(node, rule)
    if node.op == "call_function" and "val" in node.meta:
        return node.meta["val"]
    return torch.fx.Interpreter.run_node(interpreter, node)


@contextmanager
def _replaced(holder: Any, name: str, stand_in: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, stand_in)
    try:
        yield
    finally:
        setattr(holder, name, before)
