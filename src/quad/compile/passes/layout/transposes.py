"""Transposes and Reshapes that meet cancel; the others move down until they meet.

1. T(T(x)) -> one T, or x                      2. R(R(x)) -> one R; R to the shape that is there -> x
3. f(T(x)) -> T(f(x))     f one operand by element (Site, Gelu, ...), Softmax and Split along the axis as it lies in x
4. f(T(x), T(y)) -> T(f(x, y)), and f(T(x), c) for a constant of one element
5. R(T(x)) -> T(R(x))     where the Reshape only splits axes, or joins axes that lie side by side in x too
6. T(f(x)), T(g(x)), ... -> f(T(x)), g(T(x)), ... where every reader of x is turned the same way: one T for all
7. T(f(R(T(x)))) -> f(R(T(x)))   where the lower T can pass the Reshape of rule 5 upwards, to the T above it

No rule but Split's in 3 makes more Transposes than there were, and Split's move the same numbers. All but 6 run until none applies, then 6
once, then 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from quad.compile.passes.edit import Writer, axis_of, constant, is_op, perm_of, producer, remove_unread, replace, sole_reader, static_shape
from quad.compile.passes.integers.remove_sites import is_site
from quad.compile.passes.layout.axes import Perm, inverse, reshape_first

_BY_ELEMENT = frozenset({"Gelu", "Sigmoid", "Tanh", "Relu", "Erf", "Sqrt", "Reciprocal", "Neg", "Exp", "Cast", "Identity"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
_AXIS = {"Softmax": -1, "Split": 0}  # operator -> its default axis


class CancelTransposes(ir.passes.InPlacePass):
    """Let Transposes and Reshapes meet and cancel."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _until_rest(model.graph, (_join_transposes, _join_reshapes, _meet_above, _sink_one, _sink_two, _sink_reshape))
        modified = _each_value(model.graph, _lift) or modified
        modified = _until_rest(model.graph, (_join_transposes, _join_reshapes)) or modified
        model.graph.sort()
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No Transpose reads a Transpose, and none keeps the axes as they are."""
        for node in model.graph:
            if is_op(node, "Transpose") and (producer(node.inputs[0], "Transpose") or _is_identity(perm_of(node))):
                raise ir.passes.PostconditionError(f"{node.name} could be joined with what it reads")


def _until_rest(graph: ir.Graph, rules: Iterable[Callable[[ir.Node], bool]]) -> bool:
    """Apply the rules from the inputs down until none applies: each moves a Transpose down or takes one away, so this ends."""
    modified = False
    while sum(_each(graph, rule) for rule in rules):
        modified = True
    return modified


def _each(graph: ir.Graph, rule: Callable[[ir.Node], bool]) -> bool:
    """Try every node that is still there; all of them, hence no `any`."""
    return sum(rule(node) for node in list(graph) if node.graph is not None) > 0


def _each_value(graph: ir.Graph, rule: Callable[[ir.Value], bool]) -> bool:
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    return sum(rule(value) for value in values) > 0


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


def _join_transposes(node: ir.Node) -> bool:
    if not is_op(node, "Transpose") or node.inputs[0] is None:
        return False
    perm: Perm = perm_of(node)
    source: ir.Value | None = node.inputs[0]
    if above := producer(source, "Transpose"):
        inner = perm_of(above)
        perm, source = tuple(inner[k] for k in perm), above.inputs[0]
    if source is None or (source is node.inputs[0] and not _is_identity(perm)):
        return False
    turned = source if _is_identity(perm) else Writer(node, str(node.outputs[0].name)).transpose(source, perm)
    replace(node.outputs[0], turned)
    return True


def _join_reshapes(node: ir.Node) -> bool:
    if not is_op(node, "Reshape") or node.inputs[0] is None:
        return False
    shape = static_shape(node.outputs[0])
    source: ir.Value | None = node.inputs[0]
    if shape is None:
        return False
    if above := producer(source, "Reshape"):
        source = above.inputs[0]
    if source is None or (source is node.inputs[0] and static_shape(source) != shape):
        return False
    replace(node.outputs[0], Writer(node, str(node.outputs[0].name)).reshape(source, shape))
    return True


def _sink_one(node: ir.Node) -> bool:
    """Rule 3, for a Transpose that nobody else reads."""
    turn = producer(node.inputs[0], "Transpose") if node.inputs else None
    if turn is None or turn.inputs[0] is None or sole_reader(turn.outputs[0]) is not node:
        return False
    perm = perm_of(turn)
    changed = {"axis": perm[axis_of(node, len(perm), _AXIS[node.op_type])]} if is_op(node, *_AXIS) else {}
    if not (changed or _is_unary(node)):
        return False
    writer = Writer(node, str(node.outputs[0].name))
    shapes = [_turned_back(output, perm) for output in node.outputs]
    moved = writer.like(node, [turn.inputs[0], *node.inputs[1:]], *shapes, **changed)
    turned = [writer.transpose(output, perm) for output in moved.outputs]
    for old, new in zip(list(node.outputs), turned, strict=True):
        replace(old, new)
    return True


def _is_unary(node: ir.Node) -> bool:
    return is_site(node) or is_op(node, *_BY_ELEMENT)


def _turned_back(value: ir.Value, perm: Perm) -> list[int]:
    """The shape of what becomes `value` when turned by `perm`."""
    shape = static_shape(value) or ()
    return [shape[k] for k in inverse(perm)]


def _sink_two(node: ir.Node) -> bool:
    """Rule 4; one of two Transposes may have other readers, then the count stays."""
    if not is_op(node, *_BINARY):
        return False
    turns = [producer(value, "Transpose") for value in node.inputs]
    perms = {perm_of(turn) for turn in turns if turn is not None}
    alone = [turn for turn in turns if turn is not None and sole_reader(turn.outputs[0]) is node]
    constants = [value for turn, value in zip(turns, node.inputs, strict=True) if turn is None]
    if len(perms) != 1 or not alone or not all(_is_scalar(value, len(perm)) for value in constants for perm in perms):
        return False
    perm = perms.pop()
    writer = Writer(node, str(node.outputs[0].name))
    inputs = [value if turn is None else turn.inputs[0] for turn, value in zip(turns, node.inputs, strict=True)]
    moved = writer.like(node, inputs, _turned_back(node.outputs[0], perm))
    replace(node.outputs[0], writer.transpose(moved.outputs[0], perm))
    return True


def _is_scalar(value: ir.Value | None, rank: int) -> bool:
    """A constant of one element that adds no axis."""
    array = constant(value)
    return array is not None and array.size == 1 and array.ndim <= rank


def _sink_reshape(node: ir.Node) -> bool:
    """Rule 5, for a Transpose that nobody else reads."""
    turn = producer(node.inputs[0], "Transpose") if is_op(node, "Reshape") else None
    if turn is None or turn.inputs[0] is None or sole_reader(turn.outputs[0]) is not node:
        return False
    exchanged = reshape_first(static_shape(turn.outputs[0]), static_shape(node.outputs[0]), perm_of(turn))
    if exchanged is None:
        return False
    shape, perm = exchanged
    writer = Writer(node, str(node.outputs[0].name))
    replace(node.outputs[0], writer.transpose(writer.reshape(turn.inputs[0], shape), perm))
    return True


def _lift(value: ir.Value) -> bool:
    """Rule 6."""
    readers = [use.node for use in value.uses()]
    turns = [use.node for reader in readers for use in reader.outputs[0].uses()]
    perms = {perm_of(turn) for turn in turns if is_op(turn, "Transpose")}
    if len(turns) < 2 or len(perms) != 1 or value.is_graph_output() or not all(is_op(turn, "Transpose") for turn in turns):
        return False
    if any(not _is_unary(reader) or not reader.outputs[0].uses() or reader.outputs[0].is_graph_output() for reader in readers):
        return False
    perm = perms.pop()
    turned = Writer(readers[0], f"{value.name}/turned").transpose(value, perm)
    for reader in readers:
        writer = Writer(reader, str(reader.outputs[0].name))
        moved = writer.like(reader, [turned], static_shape(turned) or ())
        for use in reader.outputs[0].uses():
            replace(use.node.outputs[0], moved.outputs[0])
        remove_unread(reader)
    return True


def _meet_above(node: ir.Node) -> bool:
    """Rule 7, along a chain where each value has one reader."""
    if not is_op(node, "Transpose"):
        return False
    chain: list[ir.Node] = []
    above = _above(node)
    while above is not None and _is_unary(above):
        chain.append(above)
        above = _above(above)
    top = _above(above) if above is not None and is_op(above, "Reshape") else None
    if above is None or top is None or not is_op(top, "Transpose") or top.inputs[0] is None:
        return False
    # Seen from y = T(R(v)) upwards: v = T'(R'(y)), hence y = R(T'^-1(v)).
    exchanged = reshape_first(static_shape(above.outputs[0]), static_shape(top.outputs[0]), inverse(perm_of(node)))
    if exchanged is None:
        return False
    writer = Writer(node, str(node.outputs[0].name))
    shape = static_shape(node.outputs[0]) or ()
    joined = tuple(perm_of(top)[k] for k in inverse(exchanged[1]))
    value = writer.reshape(writer.transpose(top.inputs[0], joined), shape)
    for unary in reversed(chain):
        value = writer.like(unary, [value], shape).outputs[0]
    replace(node.outputs[0], value)
    remove_unread(chain[0] if chain else None)
    return True


def _above(node: ir.Node) -> ir.Node | None:
    """The node that makes what this one reads, if nobody else reads it."""
    source = node.inputs[0]
    maker = None if source is None else source.producer()
    return maker if source is not None and sole_reader(source) is node else None
