"""GroupNorm spelled with InstanceNormalization -> one GroupNormalization, its output's shape written out.

    Reshape [1, G, -1], InstanceNormalization(1, 0), Reshape back, Mul gamma, Add beta  ->  GroupNormalization(x, gamma, beta)

Opset 21's operator takes gamma and beta per channel. ONNX infers no shape for it, and Qualcomm's compiler wants one: hence the promise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, constant, is_op, producer, replace, sole_reader, static_shape


@dataclass(frozen=True, kw_only=True)
class _Spelled:
    """One GroupNorm in five nodes."""

    x: ir.Value
    last: ir.Node
    groups: int
    epsilon: float
    gamma: ir.Value
    beta: ir.Value


class ToGroupNorm(ir.passes.InPlacePass):
    """Compose every GroupNorm, and give each its output's shape."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [spelled for node in model.graph if (spelled := _spelled(node)) is not None]
        for spelled in norms:
            _compose(spelled)
        bare = [node for node in model.graph if is_op(node, "GroupNormalization") and static_shape(node.outputs[0]) is None]
        for node in bare:
            node.outputs[0].shape = None if node.inputs[0] is None else node.inputs[0].shape
        return ir.passes.PassResult(model, bool(norms or bare))

    def ensures(self, model: ir.Model) -> None:
        """No GroupNorm is left in five nodes, and every shape is known."""
        for node in model.graph:
            if _spelled(node) is not None or (is_op(node, "GroupNormalization") and static_shape(node.outputs[0]) is None):
                raise ir.passes.PostconditionError(f"{node.name} is not one GroupNormalization of a known shape")


def _spelled(node: ir.Node) -> _Spelled | None:
    if not is_op(node, "InstanceNormalization"):
        return None
    before, after = producer(node.inputs[0], "Reshape"), sole_reader(node.outputs[0])
    unit_scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    if before is None or before.inputs[0] is None or not is_op(after, "Reshape") or unit_scale is None or zero is None:
        return None
    x, back = before.inputs[0], after.outputs[0] if after is not None else None
    shape, grouped = static_shape(x), static_shape(before.outputs[0])
    if back is None or shape is None or grouped is None or static_shape(back) != shape or np.any(unit_scale != 1) or np.any(zero != 0):
        return None
    if len(grouped) < 3 or grouped[0] != shape[0] or shape[1] % grouped[1]:
        return None
    scaled = _by_channel(back, "Mul", shape)
    shifted = None if scaled is None else _by_channel(scaled[0].outputs[0], "Add", shape)
    if scaled is None or shifted is None:
        return None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    return _Spelled(x=x, last=shifted[0], groups=grouped[1], epsilon=epsilon, gamma=scaled[1], beta=shifted[1])


def _by_channel(value: ir.Value, op: str, shape: tuple[int, ...]) -> tuple[ir.Node, ir.Value] | None:
    """The sole reader, where it applies one constant per channel, and that constant."""
    node = sole_reader(value)
    if node is None or not is_op(node, op):
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    array = constant(other)
    ones_axes = (1,) * (len(shape) - 2)
    if other is None or array is None or array.size != shape[1] or array.shape[-len(ones_axes) - 1 :] != (shape[1], *ones_axes):
        return None
    return node, other


def _compose(spelled: _Spelled) -> None:
    writer = Writer(spelled.last, str(spelled.last.outputs[0].name))
    gamma, beta = (_flat(writer, value) for value in (spelled.gamma, spelled.beta))
    y = writer.value("GroupNormalization", [spelled.x, gamma, beta], static_shape(spelled.x) or (), epsilon=spelled.epsilon,
                     num_groups=spelled.groups)  # fmt: skip
    replace(spelled.last.outputs[0], y)


def _flat(writer: Writer, value: ir.Value) -> ir.Value:
    """One number per channel, `(C,)`."""
    array = constant(value)
    if array is None or array.ndim == 1:
        return value
    return writer.constant("channels", np.ascontiguousarray(array.reshape(-1)))
