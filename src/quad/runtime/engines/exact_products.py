"""Integer products of computed values written out in float, for a processor whose integer kernels saturate.

    MatMulIntegerToFloat(a, b, s_a, s_b, z_a)   ->   MatMul(DequantizeLinear(a, s_a, z_a), DequantizeLinear(b, s_b))

ONNX Runtime makes products with constant weights exact by itself when it is told to; of two computed values it does not. The file's bytes
are edited as they lie, for the runtime has no library for ONNX graphs.

Source: field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from quad.runtime.engines.wire_format import BYTES, Unreadable, fields

KERNEL, DOMAIN = b"MatMulIntegerToFloat", b"com.microsoft"
_GRAPH, _NODE, _INITIALIZER, _TENSOR_NAME = 7, 1, 5, 8
_INPUT, _OUTPUT, _NAME, _OP, _DOMAIN = 1, 2, 3, 4, 7


def with_exact_products(model: bytes) -> bytes:
    """The model with products of computed bytes in float; the same bytes where it has none, or is no model: the engine says so better.

    Args:
        model: an ONNX file.
    """
    if KERNEL not in model:
        return model
    try:
        return b"".join(_field(_GRAPH, _rewritten(value)) if number == _GRAPH else raw for number, value, raw in _fields(model))
    except Unreadable:
        return model


def _rewritten(graph: bytes) -> bytes:
    fields = list(_fields(graph))
    constants = {_text(value, _TENSOR_NAME) for number, value, _ in fields if number == _INITIALIZER}
    constants |= {_text(value, _OUTPUT) for number, value, _ in fields if number == _NODE and _is_widened(value, constants)}
    parts = []
    for number, value, raw in fields:
        if number == _NODE and _text(value, _OP) == KERNEL and _texts(value, _INPUT)[1] not in constants:
            parts += [_field(_NODE, node) for node in _written_out(value)]
        else:
            parts.append(raw)
    return b"".join(parts)


def _is_widened(node: bytes, constants: Set[bytes]) -> bool:
    """Is it the Cast of a constant: a weight of 4 bits in bytes."""
    return _text(node, _OP) == b"Cast" and _text(node, _INPUT) in constants


def _written_out(node: bytes) -> tuple[bytes, ...]:
    inputs, name = _texts(node, _INPUT), _text(node, _NAME)
    left, right, left_scale, right_scale, *zeros = inputs
    left_float, right_float = name + b"/left", name + b"/right"
    return (
        _node(b"DequantizeLinear", [left, left_scale, *zeros[:1]], left_float),
        _node(b"DequantizeLinear", [right, right_scale], right_float),
        _node(b"MatMul", [left_float, right_float], _text(node, _OUTPUT)),
    )


def _node(op: bytes, inputs: Sequence[bytes], output: bytes) -> bytes:
    return b"".join([*(_field(_INPUT, name) for name in inputs), _field(_OUTPUT, output), _field(_NAME, output), _field(_OP, op)])


def _text(message: bytes, field: int) -> bytes:
    return next(iter(_texts(message, field)), b"")


def _texts(message: bytes, field: int) -> list[bytes]:
    return [value for number, value, _ in _fields(message) if number == field]


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return _as_varint(number << 3 | BYTES) + _as_varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, value where it is length-delimited, and all bytes of each field."""
    for field in fields(message, 0, len(message)):
        value = message[field.start : field.end] if field.kind == BYTES else b""
        yield field.number, value, message[field.begin : field.end]


def _as_varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
