"""Integer products of computed values written out in float, for a processor whose integer kernels saturate.

    MatMulIntegerToFloat(a, b, s_a, s_b, z_a)   ->   MatMul(DequantizeLinear(a, s_a, z_a), DequantizeLinear(b, s_b))

ONNX Runtime makes products with constant weights exact by itself when it is told to; of two computed values it does not. The file's bytes
are edited as they lie, for the runtime has no library for ONNX graphs.

Source: protocol buffers' encoding (varints, length-delimited fields), field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

KERNEL, DOMAIN = b"MatMulIntegerToFloat", b"com.microsoft"
_GRAPH, _NODE, _INITIALIZER, _TENSOR_NAME = 7, 1, 5, 8
_INPUT, _OUTPUT, _NAME, _OP, _DOMAIN = 1, 2, 3, 4, 7
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_SIZES = {_FIXED_64: 8, _FIXED_32: 4}


def with_exact_products(model: bytes) -> bytes:
    """The model with its products of computed bytes in float; the same bytes where it has none.

    Args:
        model: an ONNX file.
    """
    if KERNEL not in model:
        return model
    return b"".join(_field(_GRAPH, _rewritten(value)) if number == _GRAPH else raw for number, value, raw in _fields(model))


def _rewritten(graph: bytes) -> bytes:
    fields = list(_fields(graph))
    constants = {_text(value, _TENSOR_NAME) for number, value, _ in fields if number == _INITIALIZER}
    parts = []
    for number, value, raw in fields:
        if number == _NODE and _text(value, _OP) == KERNEL and _texts(value, _INPUT)[1] not in constants:
            parts += [_field(_NODE, node) for node in _written_out(value)]
        else:
            parts.append(raw)
    return b"".join(parts)


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
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, value where it is length-delimited, and all bytes of each field."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        kind = tag & 7
        value = b""
        if kind == _BYTES:
            size, place = _varint(message, place)
            value = message[place : place + size]
            place += size
        elif kind == _VARINT:
            _, place = _varint(message, place)
        else:
            place += _SIZES[kind]
        yield tag >> 3, value, message[start:place]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if byte < 0x80:
            return value, place


def _as_varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
