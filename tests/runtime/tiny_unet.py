"""The tiny bundle's U-Net, twice: as a graph of any slot rank, and as float arithmetic in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quad.core.encoding import Encoding
from quad.core.padding import slot_scales
from quad.core.slots import NORMALISED, Slot, SlotTable

SIZE, FACTOR, HIDDEN, LENGTH, RANK = 16, 4, 8, 6, 4
SIDE = SIZE // FACTOR
LATTICE = Encoding(bits=16, signed=True, symmetric=True, scale=(1e-4,), zero_point=(0,))
UNIT = 0.5  # the end of B's encoding at normalised slots, where A's ends at 1
SITE = Encoding(bits=16, signed=False, symmetric=False, scale=(16 / 65535,), zero_point=(32768,))
WEIGHT_SCALE = np.float32(1e-3)
Node = onnx.NodeProto
Step = tuple[str, list[str], str, dict[str, Any]]


def tiny_slots(rank: int) -> SlotTable:
    """Two slots, a convolution and a linear layer."""
    conv = Slot(path="conv_in", kind="conv", in_features=9, out_features=HIDDEN, rank=rank, dtype="int16", kernel=(3, 3))
    return SlotTable((conv, Slot(path="mid.to_q", kind="linear", in_features=HIDDEN, out_features=HIDDEN, rank=rank, dtype="int16")))


def normalised_slots(rank: int) -> SlotTable:
    """The same slots, normalised."""
    return SlotTable(tiny_slots(rank).slots, NORMALISED)


def save_graph(path: Path, name: str, nodes: list[Node], inputs: list[Any], output: Any, constants: dict[str, NDArray[Any]]) -> None:
    tensors = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def unet_weights() -> dict[str, NDArray[Any]]:
    """Two int8 layers of step `WEIGHT_SCALE`, and one float."""
    rng = np.random.default_rng(0)
    w1 = rng.integers(-127, 128, (HIDDEN, 9, 3, 3)).astype(np.int8)
    w2 = rng.integers(-127, 128, (HIDDEN, HIDDEN)).astype(np.int8)
    return {"w1": w1, "w2": w2, "w3": rng.standard_normal((HIDDEN, 4)).astype(np.float32)}


_CONV_LORA: list[Step] = [
    ("Conv", ["sample", "conv_in.lora_A_f"], "c_mid", {"pads": [1, 1, 1, 1]}),
    ("Conv", ["c_mid", "conv_in.lora_B_f"], "c_lora", {}),
    ("Add", ["c", "c_lora"], "h0", {}),
]
_LINEAR_LORA: list[Step] = [
    ("Transpose", ["mid.to_q.lora_A_f"], "a_t", {"perm": [1, 0]}),
    ("Transpose", ["mid.to_q.lora_B_f"], "b_t", {"perm": [1, 0]}),
    ("MatMul", ["h5", "a_t"], "q_mid", {}),
    ("MatMul", ["q_mid", "b_t"], "q_lora", {}),
    ("Add", ["q", "q_lora"], "h6", {}),
]


def _steps(slotted: bool) -> list[Step]:
    """tanh((W1 s + B1 A1 s) -> tokens + text + t -> 16 bits -> (W2 h + B2 A2 h) -> 4 channels)."""
    return [
        ("Conv", ["sample", "w1_f"], "c", {"pads": [1, 1, 1, 1]}),
        *(_CONV_LORA if slotted else []),
        ("Reshape", ["h0" if slotted else "c", "tokens"], "h1", {}),
        ("Transpose", ["h1"], "h2", {"perm": [0, 2, 1]}),
        ("ReduceMean", ["encoder_hidden_states", "axis"], "text", {}),
        ("Add", ["h2", "text"], "h3", {}),
        ("Mul", ["timestep", "thousandth"], "t", {}),
        ("Add", ["h3", "t"], "h4", {}),
        ("QuantizeLinear", ["h4", "as", "az"], "h4_q", {}),
        ("DequantizeLinear", ["h4_q", "as", "az"], "h5", {}),
        ("MatMul", ["h5", "w2_f"], "q", {}),
        *(_LINEAR_LORA if slotted else []),
        ("Tanh", ["h6" if slotted else "q"], "h7", {}),
        ("MatMul", ["h7", "w3"], "h8", {}),
        ("Transpose", ["h8"], "h9", {"perm": [0, 2, 1]}),
        ("Reshape", ["h9", "grid"], "out_sample", {}),
    ]


def save_unet(path: Path, rank: int = RANK, normalised: bool = False, rows: int = LENGTH) -> None:
    """The graph: int8 weights, int16 slots, one 16-bit activation site; rank 0 leaves the slots out.

    Args:
        rows: of the features, each with a weight of its own where there are more than tokens.
    """
    slots = normalised_slots(rank) if normalised else tiny_slots(rank)
    constants: dict[str, NDArray[Any]] = unet_weights() | {
        "axis": np.array([1]),
        "thousandth": np.float32(1e-3),
        "ws": WEIGHT_SCALE,
        "wz": np.int8(0),
        "ls": np.float32(LATTICE.scale[0]),
        "lz": np.int16(0),
        "as": np.float32(SITE.scale[0]),
        "az": np.uint16(SITE.zero_point[0]),
        "tokens": np.array([1, HIDDEN, SIDE * SIDE]),
        "grid": np.array([1, 4, SIDE, SIDE]),
    }
    shapes = slots.input_shapes() if rank else {}
    nodes = [helper.make_node("DequantizeLinear", [w, "ws", "wz"], [f"{w}_f"]) for w in ("w1", "w2")]
    if normalised:
        constants |= {"ls": np.float32(1 / 32767), "bs": np.float32(UNIT / 32767), "ranks": np.array([rank] * len(slots.slots))}
        nodes += _scaled(slots)
    else:
        nodes += [helper.make_node("DequantizeLinear", [name, "ls", "lz"], [f"{name}_f"]) for name in shapes]
    steps = _steps(bool(rank))
    if rows != LENGTH:
        constants["row_weights"] = np.linspace(0.5, 2, rows, dtype=np.float32)[None, :, None]
        nodes.append(helper.make_node("Mul", ["encoder_hidden_states", "row_weights"], ["weighted"]))
        steps = [(op, ["weighted" if name == "encoder_hidden_states" else name for name in given], *rest) for op, given, *rest in steps]
    nodes += [helper.make_node(op, given, [out], **attributes) for op, given, out, attributes in steps]
    if not rank:
        del constants["ls"], constants["lz"]
    inputs = [value("sample", [1, 9, SIDE, SIDE]), value("timestep", [1]), value("encoder_hidden_states", [1, rows, HIDDEN])]
    kinds = {name: TensorProto.FLOAT if name in slots.scale_inputs() else TensorProto.INT16 for name in shapes}
    inputs += [value(name, list(shape), kinds[name]) for name, shape in shapes.items()]
    save_graph(path, "unet", nodes, inputs, value("out_sample", [1, 4, SIDE, SIDE]), constants)


def _scaled(slots: SlotTable) -> list[Node]:
    """Dequantized slot inputs, the scales of each slot's rank channels in its B."""
    (vector,) = slots.scale_inputs()
    nodes = [helper.make_node("Split", [vector, "ranks"], [slot.scale_name for slot in slots.slots])]
    for slot in slots.slots:
        nodes += [
            helper.make_node("DequantizeLinear", [slot.a_name, "ls", "lz"], [f"{slot.a_name}_f"]),
            helper.make_node("Mul", [slot.scale_name, "bs"], [f"{slot.b_name}_s"]),
            helper.make_node("DequantizeLinear", [slot.b_name, f"{slot.b_name}_s"], [f"{slot.b_name}_f"], axis=1),
        ]
    return nodes


def _conv(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """A 3x3 convolution `(c, h, w)` -> `(o, h, w)` with zeros around."""
    windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    result: NDArray[Any] = np.einsum("chwij,ocij->ohw", windows, w)
    return result


def real_slots(slots: Mapping[str, NDArray[Any]], table: SlotTable) -> dict[str, NDArray[np.float64]]:
    """A and B as numbers of normalised slots' integers and scales, the scales multiplied into B."""
    scales, real = slot_scales(slots, table), {}
    for slot in table.slots:
        factor = scales[slot.path].astype(np.float64).reshape(1, -1, *[1] * (len(slot.b_shape) - 2))
        real |= {slot.a_name: slots[slot.a_name] / 32767, slot.b_name: slots[slot.b_name] * factor * UNIT / 32767}
    return real


def float_unet(step: Mapping[str, NDArray[Any]], slots: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The same network in float64, nothing rounded on the way; `slots` as integers, or as numbers, empty for the base."""
    w = unet_weights()
    real = {name: array * LATTICE.scale[0] if array.dtype.kind == "i" else array for name, array in slots.items()}
    x = step["sample"][0].astype(np.float64)
    c = _conv(x, w["w1"] * float(WEIGHT_SCALE))
    if real:
        c = c + np.einsum("or,rhw->ohw", real["conv_in.lora_B"][:, :, 0, 0], _conv(x, real["conv_in.lora_A"]))
    h = c.reshape(HIDDEN, -1).T + step["encoder_hidden_states"][0].mean(axis=0) + step["timestep"] * 1e-3
    q = h @ (w["w2"] * float(WEIGHT_SCALE))
    if real:
        q = q + h @ real["mid.to_q.lora_A"].T @ real["mid.to_q.lora_B"].T
    result: NDArray[Any] = (np.tanh(q) @ w["w3"]).T.reshape(1, 4, SIDE, SIDE)
    return result
