"""MatMul(x, Transpose(w)) with a computed matrix w -> Gemm(x, w), and an Add behind it goes into the Gemm.

A LoRA branch as torch writes it, `y + (x A^T) B^T`, turns both slot inputs around at every step and adds in a node of its own. A Gemm reads
A and B as they lie and adds to y as it writes. Operands of a Gemm have two axes: the others are joined, which moves nothing.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, perm_of, producer, replace, sole_reader, static_shape

_TURNED = (1, 0)


class SlotGemm(ir.passes.InPlacePass):
    """Rewrite every MatMul whose second operand is a computed matrix that is transposed just before."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if is_op(node, "MatMul") and _matrix(node) is not None]
        flat: dict[ir.Value, ir.Value] = {}
        for node in products:
            _rewrite(node, flat)
        return ir.passes.PassResult(model, bool(products))

    def ensures(self, model: ir.Model) -> None:
        """No computed matrix is transposed for a MatMul any more."""
        if left := [node.name for node in model.graph if is_op(node, "MatMul") and _matrix(node) is not None]:
            raise ir.passes.PostconditionError(f"{left[0]} still reads a transposed matrix")


def _matrix(node: ir.Node) -> ir.Value | None:
    turn = producer(node.inputs[1], "Transpose")
    shapes = (static_shape(node.inputs[0]), static_shape(node.outputs[0]))
    if turn is None or None in shapes or perm_of(turn) != _TURNED or constant(turn.inputs[0]) is not None:
        return None
    return turn.inputs[0]


def _rewrite(node: ir.Node, flat: dict[ir.Value, ir.Value]) -> None:
    """Args:
    flat: what has been made flat already; readers of one value share it.
    """
    x, matrix, output = node.inputs[0], _matrix(node), node.outputs[0]
    shape = static_shape(output) or ()
    if x is None or matrix is None:
        return
    addend, last = _addend(output)
    writer = Writer(last, str(output.name))
    if x not in flat:
        flat[x] = _flat(writer, x)
    inputs = [flat[x], matrix] if addend is None else [flat[x], matrix, _flat(writer, addend)]
    gemm = writer.value("Gemm", inputs, (prod(shape[:-1]), shape[-1]), transB=1)
    replace(last.outputs[0], writer.reshape(gemm, shape))


def _addend(output: ir.Value) -> tuple[ir.Value | None, ir.Node]:
    """The addend of the product, if adding it is all that happens to it, and the node whose output the Gemm then gives."""
    reader, maker = sole_reader(output), output.producer()
    if maker is None:
        raise ir.passes.PassError(f"{output.name}: a value that no node makes")
    if reader is not None and is_op(reader, "Add"):
        addends = [value for value in reader.inputs if value is not output]
        if len(addends) == 1 and addends[0] is not None and static_shape(addends[0]) == static_shape(output):
            return addends[0], reader
    return None, maker


def _flat(writer: Writer, value: ir.Value) -> ir.Value:
    """All axes but the last joined; where a Reshape has just made the value of such a one, that."""
    shape = static_shape(value) or ()
    matrix_shape = (prod(shape[:-1]), shape[-1])
    reshape = producer(value, "Reshape")
    if reshape is not None and reshape.inputs[0] is not None and static_shape(reshape.inputs[0]) == matrix_shape:
        return reshape.inputs[0]
    return writer.reshape(value, matrix_shape)
