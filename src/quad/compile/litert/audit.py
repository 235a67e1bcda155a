"""The encodings of a written file against those it was to have, tensor by tensor; both sides are read back, none is what the writer holds.

1. Every tensor of integers has the scale and the zero point that the placed graph gives it, and those are the profile's.
2. SOFTMAX, LOGISTIC and TANH write the scale 1/32768, whatever they are told: it must be what the file says, and they are listed.
3. What only moves numbers has one encoding on both sides: engines copy bytes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir

from quad.compile.agreement import encoding_of
from quad.compile.litert.flatbuffer import WrittenTensor, read_operators, read_tensors
from quad.compile.passes.edit import constant, is_op
from quad.compile.placement.every_edge import refined
from quad.core.encoding import Encoding
from quad.core.errors import BackendError, mismatch
from quad.core.tensor_names import CONSTANT_ROLES, Role, role_of

FIXED_SCALE = 1.0 / 32768.0
_FIXED = ("SOFTMAX", "LOGISTIC", "TANH")
_MOVING = ("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "CONCATENATION", "GATHER", "PAD")
_INTEGERS = ("int8", "int16")
_FREE = ("/requantized", "/zeros")


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a file that passed.

    Args:
        tensors: of integers with an encoding, all compared.
        profile: the profile's entries that some tensor has as they are, by what they are: `weights`, `slots`, `activations`.
        fixed_scale: operators whose scale is their own.
        widened: entries of the profile that no tensor has as it is: values of other readers lie beyond it, or a bias needs a wider step.
    """

    tensors: int
    profile: dict[str, int]
    fixed_scale: tuple[str, ...]
    widened: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """One tensor's encoding as the placed graph has it."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]

    def matches(self, written: WrittenTensor) -> bool:
        return (self.scale, self.zero_point) == (written.scale, written.zero_point)


def audit(content: bytes, graph: ir.Graph, profile: Mapping[str, Encoding]) -> Audit:
    """Compare a file with the placed graph and the component's profile.

    Raises:
        BackendError: a tensor has another scale or zero point; the message names it.
    """
    written, operators = read_tensors(content), read_operators(content)
    expected = dict(_expected(graph))
    for name, tensor in written.items():
        wanted = _wanted(name, expected) if tensor.scale else None
        if wanted is not None and not wanted.matches(tensor):
            found = f"scale {tensor.scale[0]:.9g}, zero point {tensor.zero_point[0]}"
            due = f"scale {wanted.scale[0]:.9g}, zero point {wanted.zero_point[0]}"
            raise BackendError(mismatch(f"{graph.name}, tensor {name}", due, found, "report it with the model's name"))
    fixed = tuple(_check_operators(str(graph.name), written, operators))
    exact, widened = _against_profile(written, profile)
    encoded = sum(bool(tensor.scale) and tensor.dtype in _INTEGERS for tensor in written.values())
    return Audit(tensors=encoded, profile=exact, fixed_scale=fixed, widened=widened)


def _expected(graph: ir.Graph) -> Iterator[tuple[str, _Expected]]:
    """Name of a tensor in the file -> its encoding, of all that the placed graph names."""
    for node in graph:
        if is_op(node, "QuantizeLinear"):
            yield str(node.outputs[0].name), _of(encoding_of(node))
        elif is_op(node, "DequantizeLinear"):
            source = node.inputs[0]
            if source is not None and (constant(source) is not None or source.is_graph_input()):
                yield str(source.name), _of(encoding_of(node))


def _wanted(name: str, expected: Mapping[str, _Expected]) -> _Expected | None:
    """The encoding that a tensor of this name is to have: its own, or that of the tensor that it is a step to or a copy of, with whose name
    its own begins. None for a change of encoding and its copies, whose readers are looked at, and for biases of zeros."""
    base = name.partition("#")[0]
    while base not in expected and "/" in base:
        if base.endswith(_FREE):
            return None
        base = base.rpartition("/")[0]
    return expected.get(base)


def _of(encoding: Encoding) -> _Expected:
    return _Expected(scale=tuple(float(np.float32(s)) for s in encoding.scale), zero_point=encoding.zero_point)


def _check_operators(graph: str, written: Mapping[str, WrittenTensor], operators: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]]
                     ) -> Iterator[str]:  # fmt: skip
    for kind, inputs, outputs in operators:
        result = written[outputs[0]]
        if kind in _FIXED and result.scale:
            if (result.scale, result.zero_point) != ((FIXED_SCALE,), (0,)):
                where = f"{graph}, tensor {outputs[0]} of {kind}"
                raise BackendError(mismatch(where, "scale 1/32768, zero point 0", f"{result.scale[0]:.9g}", "report it"))
            yield outputs[0]
        for name in inputs if kind in _MOVING else ():
            source = written[name]
            if source.scale and (source.scale, source.zero_point) != (result.scale, result.zero_point):
                where = f"{graph}, {kind} from {name} to {outputs[0]}"
                raise BackendError(mismatch(where, "one encoding on both sides", "two", "report it with the model's name"))


def _against_profile(written: Mapping[str, WrittenTensor], profile: Mapping[str, Encoding]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Counts of the profile's entries that are in the file, and those that are not."""
    scales = {(tensor.scale, tensor.zero_point) for tensor in written.values() if tensor.scale}
    by_constant: dict[str, set[tuple[float, ...]]] = {}
    for name, tensor in written.items():
        by_constant.setdefault(name.rpartition("/int8/")[0] or name.rpartition("/int16/")[0] or name, set()).add(tensor.scale)
    counts, missing = {"weights": 0, "slots": 0, "activations": 0}, []
    for name, encoding in profile.items():
        wanted = _of(encoding)
        role = role_of(name)
        if role in CONSTANT_ROLES:
            kind = "weights" if role is Role.WEIGHT else "slots"
            # A weight of 16 bits is two of 8, and the finer of the two has its scale.
            present = wanted.scale in by_constant.get(name, set()) | by_constant.get(f"{name}/low", set())
        else:
            # An activation of 8 bits that no layer of 8 bits reads is written in the finer steps that hold it.
            kind = "activations"
            fine = _of(refined(encoding))
            present = bool({(wanted.scale, wanted.zero_point), (fine.scale, fine.zero_point)} & scales)
        counts[kind] += present
        if not present:
            missing.append(name)
    return counts, tuple(sorted(missing))
