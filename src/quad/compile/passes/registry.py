"""Every pass that a target's table may name, and how a list of them is run.

A target lists names in the order in which they run. Those marked `placed` work on Q/DQ nodes and run after placement, the others before it,
on the float graph with its Sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir
import onnx_ir.passes.common as library
from onnxscript.optimizer import fold_constants_ir

from quad.compile.passes.attention.slice_attention import SliceAttention
from quad.compile.passes.attention.split_halves import SplitHalves
from quad.compile.passes.attention.split_heads import SplitHeads
from quad.compile.passes.integers.fold_qdq import FoldQdq
from quad.compile.passes.integers.fold_scales import FoldScales
from quad.compile.passes.integers.four_bit_matmul import FourBitMatMul
from quad.compile.passes.integers.integer_conv import IntegerConv
from quad.compile.passes.integers.integer_matmul import IntegerMatMul
from quad.compile.passes.integers.integer_products import IntegerProducts
from quad.compile.passes.integers.slice_weights import SliceWeights
from quad.compile.passes.integers.split_concat import SplitConcat
from quad.compile.passes.integers.widen_weights import WidenWeights
from quad.compile.passes.layout.linear_to_conv import LinearToConv
from quad.compile.passes.layout.linear_to_gemm import LinearToGemm
from quad.compile.passes.layout.transposes import CancelTransposes
from quad.compile.passes.operators.arithmetic import PlainArithmetic
from quad.compile.passes.operators.finite_mask import FiniteMask
from quad.compile.passes.operators.gelu import FuseGelu
from quad.compile.passes.operators.group_norm import ToGroupNorm
from quad.compile.passes.operators.host_timestep import HostTimestep
from quad.compile.passes.operators.layer_norm import DecomposeLayerNorm
from quad.compile.passes.operators.narrow_ids import NarrowIds
from quad.compile.passes.operators.silu import FlattenNormedSilu, FlattenSilu, FlattenSmallSilu
from quad.compile.passes.operators.write_norms import WriteNorms
from quad.compile.passes.slots.dynamic_conv import DynamicConv
from quad.compile.passes.slots.dynamic_gemm import DynamicGemm
from quad.compile.passes.slots.fold_slot_scales import FoldSlotScales
from quad.compile.passes.slots.fuse_slots import FuseSlots
from quad.compile.passes.slots.left_operands import LeftOperands
from quad.compile.passes.slots.slot_gemm import SlotGemm
from quad.core.errors import UsageError, mismatch

Observer = Callable[[str, ir.Model], None]


def unobserved(name: str, model: ir.Model) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class NamedPass:
    """One pass of the registry.

    Args:
        make: gives a new pass.
        placed: it runs after placement.
    """

    make: Callable[[], ir.passes.PassBase]
    placed: bool = False


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's constant folding with shape inference, as a pass; an If of a known condition is replaced by the branch that is taken."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, bool(fold_constants_ir(model, onnx_shape_inference=True).modified))


PASSES: Mapping[str, NamedPass] = MappingProxyType(
    {
        "cancel_transposes": NamedPass(CancelTransposes),
        "decompose_layer_norm": NamedPass(DecomposeLayerNorm),
        "drop_dead": NamedPass(library.RemoveUnusedNodesPass),
        "dynamic_conv": NamedPass(DynamicConv),
        "dynamic_gemm": NamedPass(DynamicGemm),
        "finite_mask": NamedPass(FiniteMask),
        "flatten_normed_silu": NamedPass(FlattenNormedSilu),
        "flatten_silu": NamedPass(FlattenSilu),
        "flatten_small_silu": NamedPass(FlattenSmallSilu),
        "fold_constants": NamedPass(FoldConstants),
        "fold_qdq": NamedPass(FoldQdq, placed=True),
        "fold_scales": NamedPass(FoldScales, placed=True),
        "fold_slot_scales": NamedPass(FoldSlotScales, placed=True),
        "four_bit_matmul": NamedPass(FourBitMatMul, placed=True),
        "fuse_gelu": NamedPass(FuseGelu),
        "fuse_slots": NamedPass(FuseSlots, placed=True),
        "host_timestep": NamedPass(HostTimestep),
        "integer_conv": NamedPass(IntegerConv, placed=True),
        "integer_matmul": NamedPass(IntegerMatMul, placed=True),
        "integer_products": NamedPass(IntegerProducts, placed=True),
        "left_operands": NamedPass(LeftOperands),
        "linear_to_conv": NamedPass(LinearToConv),
        "linear_to_gemm": NamedPass(LinearToGemm),
        "merge_equal": NamedPass(library.CommonSubexpressionEliminationPass),
        "narrow_ids": NamedPass(NarrowIds),
        "plain_arithmetic": NamedPass(PlainArithmetic),
        "slice_attention": NamedPass(SliceAttention, placed=True),
        "slice_weights": NamedPass(SliceWeights, placed=True),
        "slot_gemm": NamedPass(SlotGemm, placed=True),
        "split_concat": NamedPass(SplitConcat, placed=True),
        "split_halves": NamedPass(SplitHalves, placed=True),
        "split_heads": NamedPass(SplitHeads),
        "to_group_norm": NamedPass(ToGroupNorm),
        "widen_weights": NamedPass(WidenWeights, placed=True),
        "write_norms": NamedPass(WriteNorms),
    }
)


def passes_before(names: Sequence[str]) -> tuple[str, ...]:
    """Those of a target's passes that run before placement, in order.

    Raises:
        UsageError: no pass of that name.
    """
    return tuple(name for name in names if not named_pass(name).placed)


def passes_after(names: Sequence[str]) -> tuple[str, ...]:
    """Those that run after it, in order; errors as above."""
    return tuple(name for name in names if named_pass(name).placed)


def named_pass(name: str) -> NamedPass:
    """One pass.

    Raises:
        UsageError: none of that name.
    """
    if name not in PASSES:
        raise UsageError(mismatch("pass", " | ".join(sorted(PASSES)), name, "choose one of these"))
    return PASSES[name]


def run_passes(model: ir.Model, names: Sequence[str], observer: Observer = unobserved) -> ir.Model:
    """Run passes by name, in order; each keeps its contract or raises.

    Args:
        observer: called with each name and the graph after it.

    Raises:
        UsageError: no pass of that name; nothing has been run then.
        onnx_ir.passes.PostconditionError: a pass did not do what it promises.
    """
    passes = [(name, named_pass(name).make()) for name in names]
    return run_sequence(model, passes, observer)


def run_sequence(model: ir.Model, passes: Sequence[tuple[str, ir.passes.PassBase]], observer: Observer = unobserved) -> ir.Model:
    """Run passes under the names by which the observer is told of them."""
    for name, rewrite in passes:
        model = rewrite(model).model
        observer(name, model)
    return model
