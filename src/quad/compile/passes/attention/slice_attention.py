"""softmax(q k^T) v -> the same by slices, one after the other, so that the scores of a large picture are never all in memory.

Heads are apart first, then queries: a row of the scores belongs to one query and needs no other row. A slice's scores stay in the cache of
the processor, and each product packs a head's k or v once for all of its rows. Q/DQ between softmax and the second product come along.

Either product is a MatMul, or a kernel on integers (`integer_products`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, replace, sole_reader, static_shape
from quad.compile.passes.integers.integer_matmul import KERNEL
from quad.compile.passes.integers.remove_sites import CONTRIBUTED

MOST_SCORES = 2**20  # of one slice: 4 MB. Stable Diffusion 1.5 has 2^27 at 512 pixels
_HEADS, _QUERIES, _RANK = 1, 2, 4


class SliceAttention(ir.passes.InPlacePass):
    """Slice every attention that has more scores than `most`.

    Args:
        most: scores of one slice.
    """

    def __init__(self, most: int = MOST_SCORES) -> None:
        super().__init__()
        self._most = most

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sliced = [_slice(node, self._most) for node in list(model.graph) if is_op(node, "Softmax")]
        return ir.passes.PassResult(model, any(sliced))


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """One attention `(1, heads, queries, keys)`.

    Args:
        chain: from the product with k to that with v, each reading the one before.
    """

    chain: tuple[ir.Node, ...]
    q: ir.Value
    k: ir.Value
    v: ir.Value
    heads: int
    queries: int
    keys: int

    @property
    def scores(self) -> int:
        return self.heads * self.queries * self.keys


def _slice(softmax: ir.Node, most: int) -> bool:
    attention = _attention(softmax)
    if attention is None or attention.scores <= most:
        return False
    heads = _part(attention.heads, attention.queries * attention.keys, most)
    rows = _part(attention.queries, heads * attention.keys, most)
    writer = Writer(attention.chain[-1], str(attention.chain[-1].outputs[0].name))
    operands = [_parts(writer, value, _HEADS, heads) for value in (attention.q, attention.k, attention.v)]
    slices = [
        _computed(writer, attention.chain, (part, k, v))
        for q, k, v in zip(*operands, strict=True)
        for part in _parts(writer, q, _QUERIES, rows)
    ]
    count = attention.queries // rows
    blocks = [_joined(writer, slices[start : start + count], _QUERIES) for start in range(0, len(slices), count)]
    replace(attention.chain[-1].outputs[0], _joined(writer, blocks, _HEADS))
    return True


def _attention(softmax: ir.Node) -> _Attention | None:
    """The attention of a softmax; None where anybody else reads in between, or it is not `(1, heads, queries, keys)`."""
    first = None if softmax.inputs[0] is None else softmax.inputs[0].producer()
    rest = _to_product(softmax)
    if first is None or rest is None or not _is_product(first) or sole_reader(first.outputs[0]) is not softmax:
        return None
    q, k, v = first.inputs[0], first.inputs[1], rest[-1].inputs[1]
    shapes = [static_shape(value) for value in (softmax.outputs[0], q, k, v)]
    if q is None or k is None or v is None or axis_of(softmax, _RANK, -1) != _RANK - 1:
        return None
    sizes = [shape for shape in shapes if shape is not None and len(shape) == _RANK and shape[0] == 1]
    if len(sizes) != len(shapes) or {shape[1] for shape in sizes} != {sizes[0][1]} or sizes[1][2] != sizes[0][2]:
        return None
    _, heads, queries, keys = sizes[0]
    return _Attention(chain=(first, *rest), q=q, k=k, v=v, heads=heads, queries=queries, keys=keys)


def _to_product(softmax: ir.Node) -> list[ir.Node] | None:
    """The softmax, its Q/DQ, and the product that weighs v with it; None where anybody else reads in between."""
    chain = [softmax]
    while True:
        reader = sole_reader(chain[-1].outputs[0])
        if reader is None or reader.inputs[0] is not chain[-1].outputs[0]:
            return None
        chain.append(reader)
        if _is_product(reader):
            return chain
        if not is_op(reader, "QuantizeLinear", "DequantizeLinear"):
            return None


def _is_product(node: ir.Node) -> bool:
    return is_op(node, "MatMul") or (node.domain == CONTRIBUTED and node.op_type == KERNEL)


def _part(size: int, scores: int, most: int) -> int:
    """The largest divisor of an axis whose slices have at most so many scores; 1 where none has.

    Args:
        scores: of one entry of the axis.
    """
    return next((size // count for count in range(max(math.ceil(size * scores / most), 1), size + 1) if size % count == 0), 1)


def _parts(writer: Writer, value: ir.Value, axis: int, size: int) -> list[ir.Value]:
    """Slices of that size along an axis; the value itself where it is one."""
    shape = static_shape(value) or ()
    count = shape[axis] // size
    if count == 1:
        return [value]
    return list(writer.node("Split", [value], *[_sized(shape, axis, size)] * count, axis=axis, num_outputs=count).outputs)


def _computed(writer: Writer, chain: Sequence[ir.Node], operands: tuple[ir.Value, ir.Value, ir.Value]) -> ir.Value:
    """The product of one slice of q with its heads' k and v."""
    value, k, v = operands
    shape = static_shape(value) or ()
    for node in chain:
        others = list(node.inputs[1:])
        if node in (chain[0], chain[-1]):
            others[0] = k if node is chain[0] else v
        value = writer.like(node, [value, *others], (*shape[:-1], (static_shape(node.outputs[0]) or ())[-1])).outputs[0]
    return value


def _joined(writer: Writer, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    if len(parts) == 1:
        return parts[0]
    shape = static_shape(parts[0]) or ()
    return writer.value("Concat", parts, _sized(shape, axis, shape[axis] * len(parts)), axis=axis)


def _sized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
