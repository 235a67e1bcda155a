"""The two fixed sequences of library and own passes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as library

from quad.compile.passes.layout.fold_transpose import FoldWeightTranspose
from quad.compile.passes.registry import FoldConstants, Observer, run_sequence, unobserved


def tidy(model: ir.Model, observer: Observer = unobserved) -> ir.Model:
    """Before placement: fold constants, drop dead and double nodes; weights keep their parameters' names.

    Equal initializers are not merged here: two layers with equal weights may still have different encodings.
    """
    return run_sequence(
        model,
        (
            ("inline", library.InlinePass()),
            ("lift_constants", library.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
            ("drop_dead", library.RemoveUnusedNodesPass()),
            ("fold_weight_transpose", FoldWeightTranspose()),
            ("fold_constants", FoldConstants()),
            ("lift_constants", library.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
            ("drop_identities", library.IdentityEliminationPass()),
            ("drop_dead", library.RemoveUnusedNodesPass()),
            ("merge_equal", library.CommonSubexpressionEliminationPass()),
            ("fix_outputs", library.OutputFixPass()),
            ("fix_names", library.NameFixPass()),
        ),
        observer,
    )


def finish(model: ir.Model, observer: Observer = unobserved) -> ir.Model:
    """After placement: merge equal scales and equal Q/DQ pairs, then `clean`."""
    merges = (
        ("merge_constants", library.DeduplicateInitializersPass()),
        ("merge_equal", library.CommonSubexpressionEliminationPass()),
    )
    return clean(run_sequence(model, merges, observer), observer)


def clean(model: ir.Model, observer: Observer = unobserved) -> ir.Model:
    """Drop what is dead, leave the file without the exporter's traces."""
    return run_sequence(
        model,
        (
            ("drop_dead", library.RemoveUnusedNodesPass()),
            ("drop_opsets", library.RemoveUnusedOpsetsPass()),
            ("drop_metadata", library.ClearMetadataAndDocStringPass()),
            ("sort", library.TopologicalSortPass()),
            ("fix_names", library.NameFixPass()),
        ),
        observer,
    )
