"""The encoding of every edge of a graph: the decision behind the placement on targets that compute on integers only.

- Values that only change their shape (reshape, transpose, split, nearest resize) are one *class* and share one encoding: nothing is
  rounded twice.
- A class takes the profile's encoding of a Site that reads it, where that encoding holds all values of the class; else a 16-bit one from
  the observed range, with the same margin that Sites have.
- What a normalised slot's scales have been multiplied with gets the margin of `A x`: an adapter's weight is in it.
- Softmax and sigmoid give [0, 1], tanh [-1, 1]: Qualcomm's kernels write scale 1/65536 and 1/32768 whatever they are told, so these are
  their encodings; of signed integers it is 1/32768 for all three, which is LiteRT's.
- Where integers are signed, what is looked up in a token table has the table's own encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from quad.compile.passes.integers.remove_sites import is_site, site_name
from quad.compile.placement.edge_ranges import Range, float_edges, is_float
from quad.core.encoding import Encoding, encode_range
from quad.core.errors import CompatibilityError, mismatch
from quad.core.margins import ACTIVATION, LORA_MID, widen
from quad.core.tensor_names import Role, role_of

SAME_VALUES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Resize", "Identity", "Expand")
UNIT = Encoding(bits=16, signed=False, symmetric=False, scale=(1.0 / 65536.0,), zero_point=(0,))
SIGNED_UNIT = Encoding(bits=16, signed=True, symmetric=True, scale=(1.0 / 32768.0,), zero_point=(0,))
_FIXED = {
    "Softmax": UNIT,
    "Sigmoid": UNIT,
    "Tanh": Encoding(bits=16, signed=False, symmetric=False, scale=(1.0 / 32768.0,), zero_point=(32768,)),
}
SIGNED_FIXED = dict.fromkeys(_FIXED, SIGNED_UNIT)


def source_of(value: ir.Value | None) -> ir.Value | None:
    """The value behind any Sites."""
    while value is not None and (node := value.producer()) is not None and is_site(node):
        value = node.inputs[0]
    return value


def edge_encodings(
    graph: ir.Graph, profile: Mapping[str, Encoding], ranges: Mapping[str, Range], *, signed: bool = False
) -> dict[str, Encoding]:
    """Encoding of every float edge by its name.

    Args:
        graph: float, with Sites.
        profile: the component's encodings; slot inputs have theirs in it.
        ranges: of every edge, from `observe_edges`.
        signed: integers are signed and symmetric.

    Raises:
        CompatibilityError: an edge has no range.
    """
    edges = [value for value in float_edges(graph) if value.uses() or value.is_graph_output()]
    classes = _classes(edges)
    members: dict[str, list[ir.Value]] = {}
    for value in edges:
        members.setdefault(classes[str(value.name)], []).append(value)
    chosen: dict[str, Encoding] = {}
    encodings: dict[str, Encoding] = {}
    for value in edges:
        root = classes[str(value.name)]
        if root not in chosen:
            # A graph input of the profile is a slot: its encoding is the adapters'.
            chosen[root] = profile[root] if root in profile else _of_class(members[root], profile, ranges, signed=signed)
        encodings[str(value.name)] = chosen[root]
    return encodings


def _classes(edges: list[ir.Value]) -> dict[str, str]:
    """Edge -> the first edge of its class. Producers come before consumers."""
    root: dict[str, str] = {}
    for value in edges:
        node = value.producer()
        parent = source_of(node.inputs[0]) if node is not None and node.op_type in SAME_VALUES else None
        root[str(value.name)] = root[str(parent.name)] if parent is not None and is_float(parent) else str(value.name)
    return root


def _of_class(members: list[ir.Value], profile: Mapping[str, Encoding], ranges: Mapping[str, Range], *, signed: bool) -> Encoding:
    first = members[0].producer()
    if first is not None and first.op_type in _FIXED:
        return (SIGNED_FIXED if signed else _FIXED)[first.op_type]
    if signed and first is not None and first.op_type == "Gather" and (table := first.inputs[0]) is not None and table.name in profile:
        return profile[str(table.name)]
    bounds = [_range(value, ranges) for value in members]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    for name in _readers(members):
        encoding = profile.get(name)
        if encoding is not None and encoding.bits == 16 and _holds(encoding, low, high):
            return encoding
    low, high = widen((low, high), ACTIVATION)
    if first is not None and _reads_scales(first):
        low, high = widen((low, high), LORA_MID[16])
    return encode_range(low, high, bits=16, signed=signed, symmetric=signed)


def _reads_scales(node: ir.Node) -> bool:
    """Is it the product with a normalised slot's scales, which come from a graph input."""
    for value in node.inputs if node.op_type == "Mul" else ():
        maker = None if value is None else value.producer()
        while value is not None and maker is not None and maker.op_type in SAME_VALUES:
            value = maker.inputs[0]
            maker = None if value is None else value.producer()
        if value is not None and value.is_graph_input() and role_of(str(value.name)) is Role.LORA_SCALES:
            return True
    return False


def _range(value: ir.Value, ranges: Mapping[str, Range]) -> Range:
    if str(value.name) not in ranges:
        raise CompatibilityError(mismatch(f"edge {value.name}", "an observed range", "none", "observe the graph that is placed"))
    return ranges[str(value.name)]


def _readers(members: list[ir.Value]) -> Iterator[str]:
    """Names of the Sites that read one of these values."""
    for value in members:
        for node, _ in value.uses():
            if is_site(node):
                yield site_name(node)


def _holds(encoding: Encoding, low: float, high: float) -> bool:
    """Does no value between these bounds clip, by more than half a step."""
    scale, zero = encoding.scale[0], encoding.zero_point[0]
    return (encoding.qmin - zero - 0.5) * scale <= low and high <= (encoding.qmax - zero + 0.5) * scale
