"""Graph passes: one rewrite per file, each an `onnx_ir` pass with `requires`, `call` and `ensures`.

`tidy` runs before placement and keeps every weight under its parameter's name; `finish` runs after it.
"""

from quad.compile.passes.fold_transpose import FoldWeightTranspose, weight_permutation
from quad.compile.passes.remove_sites import RemoveSites
from quad.compile.passes.sequences import finish, tidy

__all__ = ["FoldWeightTranspose", "RemoveSites", "finish", "tidy", "weight_permutation"]
