"""Graph passes: one rewrite per file, each an `onnx_ir` pass with `requires`, `call` and `ensures`.

`tidy` runs before placement and keeps every weight under its parameter's name; `finish` runs after it. Between them run those that a
target's table names, see `PASSES`.
"""

from quad.compile.passes.integers.remove_sites import RemoveSites
from quad.compile.passes.layout.fold_transpose import FoldWeightTranspose, weight_permutation
from quad.compile.passes.registry import PASSES, NamedPass, Observer, passes_after, passes_before, run_passes, unobserved
from quad.compile.passes.sequences import clean, finish, tidy

__all__ = [
    "PASSES",
    "FoldWeightTranspose",
    "NamedPass",
    "Observer",
    "RemoveSites",
    "clean",
    "finish",
    "passes_after",
    "passes_before",
    "run_passes",
    "tidy",
    "unobserved",
    "weight_permutation",
]
