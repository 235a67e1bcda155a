"""The two fixed sequences of library and own passes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as library
from onnxscript.optimizer import fold_constants_ir

from quad.compile.passes.fold_transpose import FoldWeightTranspose


def tidy(model: ir.Model) -> ir.Model:
    """Before placement: fold constants, drop dead and double nodes; weights keep their parameters' names.

    Equal initializers are not merged here: two layers with equal weights may still have different encodings.
    """
    _run(
        model,
        library.InlinePass(),
        library.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        library.RemoveUnusedNodesPass(),
        FoldWeightTranspose(),
    )
    fold_constants_ir(model, onnx_shape_inference=True)
    return _run(
        model,
        library.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        library.IdentityEliminationPass(),
        library.RemoveUnusedNodesPass(),
        library.CommonSubexpressionEliminationPass(),
        library.OutputFixPass(),
        library.NameFixPass(),
    )


def finish(model: ir.Model) -> ir.Model:
    """After placement: merge equal scales and equal Q/DQ pairs, drop what is dead, leave the file without the exporter's traces."""
    return _run(
        model,
        library.DeduplicateInitializersPass(),
        library.CommonSubexpressionEliminationPass(),
        library.RemoveUnusedNodesPass(),
        library.RemoveUnusedOpsetsPass(),
        library.ClearMetadataAndDocStringPass(),
        library.TopologicalSortPass(),
        library.NameFixPass(),
    )


def _run(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    return ir.passes.Sequential(*passes)(model).model
