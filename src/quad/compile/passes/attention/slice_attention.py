"""softmax(q k^T) v -> the same by slices of q, one after the other, so that the scores of a large picture are never all in memory.

A row of the scores belongs to one query and needs no other row. Q/DQ between softmax and the second matmul come along.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, producer, replace, sole_reader, static_shape

MOST_SCORES = 2**22  # of one slice: 16 MB. Stable Diffusion 1.5 has 2^27 at 512 pixels: 2.63 GB a call, 1.92 in slices of 2^24, 1.83 so


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


def _slice(softmax: ir.Node, most: int) -> bool:
    scores, shape = producer(softmax.inputs[0], "MatMul"), static_shape(softmax.outputs[0])
    chain = _to_product(softmax)
    if scores is None or shape is None or chain is None or sole_reader(scores.outputs[0]) is not softmax:
        return False
    product, q, product_shape = chain[-1], scores.inputs[0], static_shape(chain[-1].outputs[0])
    q_shape = static_shape(q)
    if q is None or q_shape is None or product_shape is None or len({len(shape), len(q_shape), len(product_shape)}) != 1:
        return False
    rank, count = len(shape), _slices(shape, most)
    if count == 1 or axis_of(softmax, rank, -1) != rank - 1 or q_shape[-2] != shape[-2]:
        return False
    rows = shape[-2] // count
    writer = Writer(product, str(product.outputs[0].name))
    parts = writer.node("Split", [q], *[_rows(q_shape, rows)] * count, axis=rank - 2, num_outputs=count).outputs
    slices = []
    for part in parts:
        value = part
        for node in (scores, *chain):
            value = writer.like(node, [value, *node.inputs[1:]], _rows(static_shape(node.outputs[0]) or (), rows)).outputs[0]
        slices.append(value)
    replace(product.outputs[0], writer.value("Concat", slices, product_shape, axis=rank - 2))
    return True


def _to_product(softmax: ir.Node) -> list[ir.Node] | None:
    """The softmax, its Q/DQ, and the matmul that weighs v with it; None where anybody else reads in between."""
    chain = [softmax]
    while True:
        reader = sole_reader(chain[-1].outputs[0])
        if reader is None or reader.inputs[0] is not chain[-1].outputs[0]:
            return None
        chain.append(reader)
        if is_op(reader, "MatMul"):
            return chain
        if not is_op(reader, "QuantizeLinear", "DequantizeLinear"):
            return None


def _slices(shape: tuple[int, ...], most: int) -> int:
    """The fewest equal slices of the queries that have at most so many scores each, or single queries."""
    needed = min(math.ceil(math.prod(shape) / most), shape[-2])
    return next(count for count in range(max(needed, 1), shape[-2] + 1) if shape[-2] % count == 0)


def _rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (*shape[:-2], rows, shape[-1])
