"""MatMul of tokens with a matrix (and its bias) -> a 1x1 convolution over the tokens, channels first.

1. constant matrix   y[1,T,N] = x[1,T,K] W[K,N] + b    ->   Conv(x^T as [1,K,1,T], W as [N,K,1,1], b), turned back
2. computed matrix   y[1,T,N] = x[1,T,K] M[K,N]        ->   MatMul(M^T, x^T), turned back; where M turns a slot's A or B, M^T is the slot
                                                            input itself, as it comes

Case 2 puts the LoRA branch into the layout of its convolution: left on tokens, each layer would need its Transposes twice.
`cancel_transposes` takes away those that meet.
"""

from __future__ import annotations

import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, perm_of, producer, replace, sole_reader, static_shape
from quad.compile.passes.layout.fold_transpose import restore_weight
from quad.compile.passes.layout.linear_to_gemm import bias_behind

_TURN = (0, 2, 1)


class LinearToConv(ir.passes.InPlacePass):
    """Rewrite every MatMul of one batch of tokens `[1, T, K]` with a matrix `[K, N]`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        linears = [node for node in model.graph if _is_linear(node)]
        for node in linears:
            if constant(node.inputs[1]) is None:
                _to_left_product(node)
            else:
                _to_convolution(node)
        return ir.passes.PassResult(model, bool(linears))

    def ensures(self, model: ir.Model) -> None:
        """No such MatMul is left."""
        if left := next((node for node in model.graph if _is_linear(node)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a MatMul of tokens")


def _is_linear(node: ir.Node) -> bool:
    if not is_op(node, "MatMul"):
        return False
    x, matrix, y = (static_shape(value) for value in (*node.inputs, node.outputs[0]))
    if x is None or matrix is None or y is None or len(x) != 3 or x[0] != 1 or len(matrix) != 2:
        return False
    weight = node.inputs[1]
    # A weight that another node reads too must keep its shape.
    return weight is not None and (constant(weight) is None or sole_reader(weight) is node)


def _to_convolution(node: ir.Node) -> None:
    x, weight = node.inputs
    if x is None or weight is None:
        return
    bias, last = bias_behind(node)
    width, channels = static_shape(weight) or (0, 0)
    tokens = (static_shape(x) or (0, 0))[1]
    restore_weight(weight, (1, 0, None, None))
    writer = Writer(last, str(last.outputs[0].name))
    turned = writer.reshape(writer.transpose(x, _TURN), (1, width, 1, tokens))
    inputs = [turned, weight] if bias is None else [turned, weight, bias]
    y = writer.value("Conv", inputs, (1, channels, 1, tokens), kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1],
                     group=1)  # fmt: skip
    replace(last.outputs[0], writer.transpose(writer.reshape(y, (1, channels, tokens)), _TURN))


def _to_left_product(node: ir.Node) -> None:
    x, matrix = node.inputs
    if x is None or matrix is None:
        return
    writer = Writer(node, str(node.outputs[0].name))
    turn = producer(matrix, "Transpose")
    source = turn.inputs[0] if turn is not None and perm_of(turn) == (1, 0) else None
    left = writer.transpose(matrix, (1, 0)) if source is None else source
    rows, tokens = (static_shape(left) or (0,))[0], (static_shape(x) or (0, 0))[1]
    y = writer.value("MatMul", [left, writer.transpose(x, _TURN)], (1, rows, tokens))
    replace(node.outputs[0], writer.transpose(y, _TURN))
