"""The placed graph as a reference for what a vendor's compiler or kernels make of it, and how near they have to come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from quad.compile.artifact import save_graph
from quad.compile.late_weights import delay_weights
from quad.compile.passes.edit import constant
from quad.compile.targets import is_eight_bit_site
from quad.core.encoding import Encoding
from quad.core.errors import UnsupportedError, mismatch
from quad.runtime.engines.ort import AS_WRITTEN, session_options

# SQNR, dB. Where rounding edges alone differ the reference model has 59 dB and more with 16-bit activations, and 30 dB where an edge is a
# step of 8 bits (whose own noise is 24 dB); faults of compilers and of lowering rules gave 15 dB and less.
AGREE_DB, BYTE_AGREE_DB = 35.0, 20.0


def limit_of(profile: Mapping[str, Encoding]) -> float:
    """The least agreement that a graph of integers of this profile is held to, dB."""
    return BYTE_AGREE_DB if any(is_eight_bit_site(*item) for item in profile.items()) else AGREE_DB


def as_written(model: ir.Model, path: Path) -> ort.InferenceSession:
    """A Q/DQ graph, saved at `path` and computed as it is written."""
    copy = model.clone()
    delay_weights(copy.graph)
    save_graph(copy, path)
    options = session_options(AS_WRITTEN, 1)
    in_written_order(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_written_order(options: ort.SessionOptions) -> None:
    """Compute the operators in the order of the file as far as the engine has them in it: no activation is held for long."""
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED


def encoding_of(node: ir.Node) -> Encoding:
    """Of a Q or a DQ.

    Raises:
        UnsupportedError: its scale or zero point is computed.
    """
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    if scale is None or zero is None:
        raise UnsupportedError(mismatch(f"{node.name}", "a constant scale and zero point", "a computed one", "report it"))
    signed = zero.dtype.kind == "i"
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes and scale.size > 1 else None
    return Encoding(
        bits=8 * zero.dtype.itemsize,
        signed=signed,
        symmetric=signed and not zero.any(),
        scale=tuple(float(s) for s in scale.reshape(-1)),
        zero_point=tuple(int(z) for z in zero.reshape(-1)),
        axis=axis,
    )
