"""GELU spelled with Erf -> one Gelu.

x * 0.5 * (1 + erf(x / sqrt 2)), its factors in any order  ->  Gelu(x)
"""

from __future__ import annotations

from math import isclose, sqrt

import onnx_ir as ir

from quad.compile.passes.edit import Writer, is_op, producer, replace, scalar, sole_reader, static_shape


class FuseGelu(ir.passes.InPlacePass):
    """Compose every GELU by Erf."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gelus = [spelled for node in model.graph if (spelled := _spelled(node)) is not None]
        for x, last in gelus:
            writer = Writer(last, str(last.outputs[0].name))
            replace(last.outputs[0], writer.value("Gelu", [x], static_shape(x) or (), approximate="none"))
        return ir.passes.PassResult(model, bool(gelus))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        if left := next((node for node in model.graph if _spelled(node) is not None), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a GELU in five nodes")


def _spelled(erf: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """The GELU's argument and its last node; None where there is no GELU at this node."""
    if not is_op(erf, "Erf"):
        return None
    x = _divided_by_root_two(erf.inputs[0])
    plus_one = sole_reader(erf.outputs[0])
    if x is None or plus_one is None or not is_op(plus_one, "Add") or not any(scalar(value) == 1 for value in plus_one.inputs):
        return None
    # Two factors are left, x and 0.5: from here down, or as one product on the side.
    value, missing = plus_one.outputs[0], {"half", "argument"}
    while missing:
        node = sole_reader(value)
        factors = _factors(node, value, x) if is_op(node, "Mul") else frozenset()
        if node is None or not factors or not factors <= missing:
            return None
        missing -= factors
        value, last = node.outputs[0], node
    return x, last


def _factors(product: ir.Node | None, value: ir.Value, x: ir.Value) -> frozenset[str]:
    """The factors, of the two, that the product multiplies `value` with."""
    if product is None:
        return frozenset()
    other = product.inputs[1] if product.inputs[0] is value else product.inputs[0]
    if other is x:
        return frozenset({"argument"})
    if scalar(other) == 0.5:
        return frozenset({"half"})
    return frozenset({"half", "argument"}) if _is_half_of(other, x) else frozenset()


def _divided_by_root_two(value: ir.Value | None) -> ir.Value | None:
    node = producer(value, "Div", "Mul")
    if node is None:
        return None
    factor = sqrt(2) if is_op(node, "Div") else 1 / sqrt(2)
    for x, number in ((node.inputs[0], scalar(node.inputs[1])), (node.inputs[1], scalar(node.inputs[0]))):
        if number is not None and isclose(number, factor, rel_tol=1e-6) and (is_op(node, "Mul") or x is node.inputs[0]):
            return x
    return None


def _is_half_of(value: ir.Value | None, x: ir.Value) -> bool:
    node = producer(value, "Mul")
    return node is not None and any(one is x for one in node.inputs) and any(scalar(one) == 0.5 for one in node.inputs)
