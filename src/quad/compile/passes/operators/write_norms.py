"""LayerNormalization and GroupNormalization -> means, difference, inverse root, products: for compilers without the operators.

    d = x - mean(x),   y = d rsqrt(mean(d d) + epsilon) gamma + beta

An engine on 16-bit integers has steps of one size for all that a tensor holds, and takes an inverse root from a table of 512 chords over
all of it. The variances of a network differ by factors of hundreds, between groups and between pictures: there the table is off by half.
So the root is taken of what hardly varies. With any gain g > 0

    u = d g,   y = u r gamma + beta,   r = rsqrt(mean(u u) + epsilon g g)

and g = 1 / (mean(relu(d)) + sqrt(epsilon)) makes u of one size: half of the mean magnitude is known from the positive side alone, since d
has mean zero. Its error does not matter, as long as u and epsilon's term have the same g. One step of Newton's method mends the root:

    r <- r (1.5 - 0.5 v r^2),   v = mean(u u) + epsilon g g

In float none of this changes anything. Inverse roots are a Pow of -0.5, 1/m is the square of one. Groups are an axis of their own, between
the places and the channels of a group, so that no operator has more than four axes and none of the pictures is turned around.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, is_op, replace, static_shape

_EPSILON = 1e-5  # ONNX's own, where a node says nothing
_NORMS = ("LayerNormalization", "GroupNormalization")


class WriteNorms(ir.passes.InPlacePass):
    """Write out every norm."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if is_op(node, *_NORMS)]
        for node in norms:
            _write(node)
        return ir.passes.PassResult(model, bool(norms))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        if left := next((node for node in model.graph if is_op(node, *_NORMS)), None):
            raise ir.passes.PostconditionError(f"{left.name} is still a {left.op_type}")


@dataclass(frozen=True)
class _Axes:
    """How a norm sees its input.

    Args:
        shape: what it is reshaped to.
        over: axes of that which a mean is taken over.
        parameters: shape of gamma and beta beside the input's own shape.
    """

    shape: tuple[int, ...]
    over: tuple[int, ...]
    parameters: tuple[int, ...]


def _axes(node: ir.Node, shape: tuple[int, ...]) -> _Axes:
    if is_op(node, "LayerNormalization"):
        if axis_of(node, len(shape), -1) != len(shape) - 1 or any(output.uses() for output in node.outputs[1:]):
            raise ir.passes.PassError(f"{node.name}: a norm over several axes, or whose statistics are read")
        return _Axes(shape, (len(shape) - 1,), shape[-1:])
    groups = node.attributes["num_groups"].as_int()
    batch, channels = shape[:2]
    return _Axes((batch, groups, channels // groups, prod(shape[2:])), (2, 3), (channels, *[1] * (len(shape) - 2)))


def _write(node: ir.Node) -> None:
    x, gamma, beta = (*node.inputs, None)[:3]
    shape = static_shape(x)
    if x is None or shape is None:
        raise ir.passes.PassError(f"{node.name}: a norm of no known shape")
    axes = _axes(node, shape)
    writer = Writer(node, str(node.outputs[0].name))
    scaled, root = _scaled_and_root(writer, writer.reshape(x, axes.shape), axes, _epsilon(node))
    y = writer.reshape(writer.value("Mul", [scaled, root], axes.shape), shape)
    if gamma is not None:
        y = writer.value("Mul", [y, _parameter(writer, "gamma", gamma, axes)], shape)
    if beta is not None:
        y = writer.value("Add", [y, _parameter(writer, "beta", beta, axes)], shape)
    replace(node.outputs[0], y)


def _scaled_and_root(writer: Writer, x: ir.Value, axes: _Axes, epsilon: float) -> tuple[ir.Value, ir.Value]:
    """`u` and `r`."""
    column = tuple(1 if axis in axes.over else n for axis, n in enumerate(axes.shape))
    over = writer.constant("axes", np.array(axes.over, np.int64))

    def number(label: str, value: float) -> ir.Value:
        return writer.constant(label, np.array(value, np.float32))

    def mean(value: ir.Value) -> ir.Value:
        return writer.value("ReduceMean", [value, over], column, keepdims=1)

    def product(first: ir.Value, second: ir.Value) -> ir.Value:
        return writer.value("Mul", [first, second], column)

    def inverse_root(value: ir.Value) -> ir.Value:
        return writer.value("Pow", [value, number("exponent", -0.5)], column)

    difference = writer.value("Sub", [x, mean(x)], axes.shape)
    magnitude = mean(writer.value("Relu", [difference], axes.shape))
    gain_root = inverse_root(writer.value("Add", [magnitude, number("least", sqrt(epsilon))], column))
    gain = product(gain_root, gain_root)
    scaled = writer.value("Mul", [difference, gain], axes.shape)
    squares = writer.value("Mul", [scaled, scaled], axes.shape)
    moved = product(product(gain, gain), number("epsilon", epsilon))
    variance = writer.value("Add", [mean(squares), moved], column)
    root = inverse_root(variance)
    near_one = product(product(variance, root), root)
    step = writer.value("Add", [product(near_one, number("half", -0.5)), number("three_halves", 1.5)], column)
    return scaled, product(root, step)


def _parameter(writer: Writer, label: str, value: ir.Value, axes: _Axes) -> ir.Value:
    if value.const_value is None:
        raise ir.passes.PassError(f"{value.name}: a computed {label}")
    return writer.constant(label, value.const_value.numpy().reshape(axes.parameters))


def _epsilon(node: ir.Node) -> float:
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _EPSILON
