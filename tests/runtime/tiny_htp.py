"""The tiny U-Net for Qualcomm's HTP: every value an integer, compiled to a context binary by the provider itself.

Rules that the graph keeps: each reader has a DequantizeLinear of its own, activations are unsigned 16 bits, the second operand of a product
signed and symmetric. The tanh stands on a picture and its last layer is a convolution: behind a matmul over tokens this compiler makes
garbage of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quad.core.digests import canonical_json
from quad.core.encoding import Encoding, encode_range
from quad.core.ports import PORTS_FILE, Port, Ports
from tests.runtime.tiny_unet import HIDDEN, LATTICE, LENGTH, SIDE, WEIGHT_SCALE, save_graph, tiny_slots, unet_weights, value

CHIP = {"soc_model": "69", "htp_arch": "79"}
INPUTS = {"sample": [1, 9, SIDE, SIDE], "timestep": [1], "encoder_hidden_states": [1, LENGTH, HIDDEN]}
OUTPUT = "out_sample"


def reach(limit: float) -> Encoding:
    """Unsigned 16 bits over +-limit."""
    return encode_range(-limit, limit, bits=16, signed=False, symmetric=False)


# The largest magnitude that the tests bring to each value, with room; those that are sums keep the encoding of what is added to.
CONV, TOKENS, QUERY, OUT = reach(8.0), reach(8.0), reach(6.0), reach(8.0)
TANH = Encoding(
    bits=16, signed=False, symmetric=False, scale=(2.0**-15,), zero_point=(32768,)
)  # of the chip's own kernel: another is taken, and ignored
WEIGHT = Encoding(bits=8, signed=True, symmetric=True, scale=(float(WEIGHT_SCALE),), zero_point=(0,))
FINE = encode_range(-4.0, 4.0, bits=16, signed=True, symmetric=True)
Operand = tuple[str, Encoding | None]


class _Writer:
    """Writes operators between Q and DQ."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def _encoding(self, encoding: Encoding) -> list[str]:
        name = f"e{encoding.dtype.name}_{encoding.scale[0]}"
        self.constants[f"{name}_s"] = np.float32(encoding.scale[0])  # type: ignore[assignment]
        self.constants[f"{name}_z"] = encoding.dtype.type(encoding.zero_point[0])
        return [f"{name}_s", f"{name}_z"]

    def constant(self, name: str, array: NDArray[Any], encoding: Encoding | None) -> Operand:
        self.constants[name] = array
        return name, encoding

    def op(self, kind: str, operands: list[Operand], out: str, encoding: Encoding, **attributes: Any) -> Operand:
        """Operands without an encoding are given as they are."""
        given = []
        for place, (name, own) in enumerate(operands):
            given.append(f"{out}_{place}" if own else name)
            if own:
                self.nodes.append(helper.make_node("DequantizeLinear", [name, *self._encoding(own)], [given[-1]]))
        self.nodes.append(helper.make_node(kind, given, [f"{out}_f"], **attributes))
        self.nodes.append(helper.make_node("QuantizeLinear", [f"{out}_f", *self._encoding(encoding)], [out]))
        return out, encoding


def _graph(slotted: bool) -> _Writer:
    """`tiny_unet`'s network, its tail on a picture."""
    w = _Writer()
    weights = unet_weights()
    sample, text, time = ("sample", reach(6.0)), ("encoder_hidden_states", reach(6.0)), ("timestep", reach(1000.0))
    x = w.op("Conv", [sample, w.constant("w1", weights["w1"], WEIGHT)], "c", CONV, pads=[1, 1, 1, 1])
    if slotted:
        mid = w.op("Conv", [sample, ("conv_in.lora_A", LATTICE)], "c_mid", reach(12.0), pads=[1, 1, 1, 1])
        x = w.op("Add", [x, w.op("Conv", [mid, ("conv_in.lora_B", LATTICE)], "c_lora", reach(6.0))], "h0", CONV)
    x = w.op("Reshape", [x, w.constant("tokens", np.array([1, HIDDEN, SIDE * SIDE]), None)], "h1", CONV)
    x = w.op("Transpose", [x], "h2", CONV, perm=[0, 2, 1])
    mean = w.op("ReduceMean", [text, w.constant("axis", np.array([1]), None)], "text", reach(4.0))
    x = w.op("Add", [x, mean], "h3", TOKENS)
    thousandth = w.constant(
        "thousandth", np.array([65535], np.uint16), Encoding(bits=16, signed=False, symmetric=False, scale=(1e-3 / 65535,), zero_point=(0,))
    )
    x = w.op("Add", [x, w.op("Mul", [time, thousandth], "t", reach(1.0))], "h4", TOKENS)
    q = w.op("MatMul", [x, w.constant("w2", weights["w2"], WEIGHT)], "q", QUERY)
    if slotted:
        turned = [w.op("Transpose", [(f"mid.to_q.lora_{k}", LATTICE)], f"{k}_t", LATTICE, perm=[1, 0]) for k in "AB"]
        mid = w.op("MatMul", [x, turned[0]], "q_mid", reach(12.0))
        q = w.op("Add", [q, w.op("MatMul", [mid, turned[1]], "q_lora", QUERY)], "h6", QUERY)
    q = w.op("Transpose", [q], "h7", QUERY, perm=[0, 2, 1])
    q = w.op("Reshape", [q, w.constant("grid", np.array([1, HIDDEN, SIDE, SIDE]), None)], "h8", QUERY)
    last = FINE.quantize(weights["w3"].T[:, :, None, None])
    w.op("Conv", [w.op("Tanh", [q], "h9", TANH), w.constant("w3", last, FINE)], OUTPUT, OUT)
    return w


def ports() -> Ports:
    """Of the graph."""
    inputs = {"sample": reach(6.0), "timestep": reach(1000.0), "encoder_hidden_states": reach(6.0)}
    return Ports({name: Port("uint16", encoding) for name, encoding in inputs.items()}, {OUTPUT: Port("uint16", OUT)})


def save_htp_unet(path: Path, rank: int) -> None:
    """Binary, its pointer `path` and the ports; rank 0 leaves the slots out."""
    from quad.runtime.engines.qnn import htp_session

    written = _graph(bool(rank))
    inputs = [value(name, shape, TensorProto.UINT16) for name, shape in INPUTS.items()]
    inputs += [value(name, list(shape), TensorProto.INT16) for name, shape in (tiny_slots(rank).input_shapes() if rank else {}).items()]
    placed = path.parent.with_name("placed") / "model.onnx"
    save_graph(placed, "unet", written.nodes, inputs, value(OUTPUT, [1, 4, SIDE, SIDE], TensorProto.UINT16), written.constants)
    path.parent.mkdir()
    context = {"ep.context_enable": "1", "ep.context_file_path": str(path), "ep.context_embed_mode": "0"}
    htp_session(placed, options=CHIP, config=context)
    (path.parent / PORTS_FILE).write_bytes(canonical_json(ports()))
