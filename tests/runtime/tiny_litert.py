"""The tiny bundle's graphs for LiteRT, written by hand: the U-Net's picture and answer as 16-bit integers, floats in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.digests import canonical_json
from quad.core.encoding import Encoding, encode_range
from quad.core.ports import PORTS_FILE, Port, Ports
from tests.runtime.tiny_unet import FACTOR, HIDDEN, LATTICE, LENGTH, SIDE, SIZE, WEIGHT_SCALE, tiny_slots, unet_weights

OUTPUT = "out_sample"
SAME, VALID = 0, 1  # of the schema's enum Padding


def reach(limit: float) -> Encoding:
    """Signed 16 bits over +-limit, as LiteRT has them."""
    return encode_range(-limit, limit, bits=16, signed=True, symmetric=True)


SAMPLE, SITE, OUT = reach(6.0), reach(8.0), reach(4.0)


@dataclass
class Writer:
    """Writes one graph, tensor by tensor, with the schema that the library brings."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.buffers.append(schema.BufferT())  # the first is nobody's
        self.kinds = {"f4": schema.TensorType.FLOAT32, "i2": schema.TensorType.INT16, "i4": schema.TensorType.INT32}

    def tensor(self, name: str, shape: Any, kind: str = "f4", encoding: Encoding | None = None, data: NDArray[Any] | None = None) -> int:
        made = self.schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), [*map(int, shape)], self.kinds[kind], 0
        if encoding is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [encoding.scale[0]], [0]
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, array: Any, kind: str) -> int:
        data = np.asarray(array, kind)
        return self.tensor(f"constant_{len(self.tensors)}", data.shape, kind, data=data)

    def op(self, code: str, given: list[int], shape: Any, options: tuple[str, dict[str, Any]] | None = None, *,
           out: int | None = None, kind: str = "f4", encoding: Encoding | None = None) -> int:  # fmt: skip
        """An operator with one output."""
        if code not in self.codes:
            self.codes.append(code)
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs = self.codes.index(code), given
        out = self.tensor(f"value_{len(self.tensors)}", shape, kind, encoding) if out is None else out
        made.outputs = [out]
        if options is not None:
            name, fields = options
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            made.builtinOptions = getattr(self.schema, f"{name}T")()
            for key, each in fields.items():
                setattr(made.builtinOptions, key, each)
        self.operators.append(made)
        return out

    def save(self, path: Path, inputs: list[int], output: int) -> None:
        import flatbuffers

        schema, model, graph = self.schema, self.schema.ModelT(), self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, inputs, [output]
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for name in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 3 if name == "DEQUANTIZE" else 1
            model.operatorCodes.append(code)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = self._named(inputs), self._named([output])
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(builder.Output()))

    def _named(self, places: list[int]) -> list[Any]:
        named = []
        for place in places:
            made = self.schema.TensorMapT()
            made.name, made.tensorIndex = self.tensors[place].name, place
            named.append(made)
        return named

    # Operators that the graphs below are made of.

    def real(self, given: int, shape: Any) -> int:
        return self.op("DEQUANTIZE", [given], shape)

    def transpose(self, given: int, axes: list[int], shape: Any, out: int | None = None) -> int:
        return self.op("TRANSPOSE", [given, self.constant(axes, "i4")], shape, ("TransposeOptions", {}), out=out)

    def reshape(self, given: int, shape: list[int], out: int | None = None) -> int:
        return self.op("RESHAPE", [given, self.constant(shape, "i4")], shape, ("ReshapeOptions", {"newShape": shape}), out=out)

    def add(self, left: int, right: int, shape: Any) -> int:
        return self.op("ADD", [left, right], shape, ("AddOptions", {}))

    def matmul(self, left: int, right: int, shape: Any, turned: bool = False) -> int:
        return self.op("BATCH_MATMUL", [left, right], shape, ("BatchMatMulOptions", {"adjY": turned}))

    def conv(self, given: int, filters: int, outputs: int, shape: Any, *, stride: int = 1, padding: int = SAME) -> int:
        settings = {"padding": padding, "strideH": stride, "strideW": stride, "dilationHFactor": 1, "dilationWFactor": 1}
        bias = self.constant(np.zeros(outputs), "f4")
        return self.op("CONV_2D", [given, filters, bias], shape, ("Conv2DOptions", settings))


def save_litert_unet(path: Path, rank: int) -> None:
    """`tiny_unet`'s network with its ports; rank 0 leaves the slots out."""
    w, weights, cells = Writer(), unet_weights(), SIDE * SIDE
    sample = w.tensor("sample", (1, 9, SIDE, SIDE), "i2", SAMPLE)
    time, text = w.tensor("timestep", (1,)), w.tensor("encoder_hidden_states", (1, LENGTH, HIDDEN))
    shapes = tiny_slots(rank).input_shapes() if rank else {}
    slots = {name: w.tensor(name, shape, "i2", LATTICE) for name, shape in shapes.items()}
    real = {name: w.real(place, shapes[name]) for name, place in slots.items()}
    picture = (1, SIDE, SIDE, HIDDEN)
    x = w.transpose(w.real(sample, (1, 9, SIDE, SIDE)), [0, 2, 3, 1], (1, SIDE, SIDE, 9))
    h = w.conv(x, w.constant((weights["w1"] * WEIGHT_SCALE).transpose(0, 2, 3, 1), "f4"), HIDDEN, picture)
    if rank:
        a = w.transpose(real["conv_in.lora_A"], [0, 2, 3, 1], (rank, 3, 3, 9))
        b = w.transpose(real["conv_in.lora_B"], [0, 2, 3, 1], (HIDDEN, 1, 1, rank))
        h = w.add(h, w.conv(w.conv(x, a, rank, (1, SIDE, SIDE, rank)), b, HIDDEN, picture), picture)
    tokens = (1, cells, HIDDEN)
    h = w.reshape(h, [*tokens])
    mean = w.op("MEAN", [text, w.constant([1], "i4")], (1, 1, HIDDEN), ("ReducerOptions", {"keepDims": True}))
    when = w.op("MUL", [time, w.constant(np.float32([1e-3]), "f4")], (1,), ("MulOptions", {}))
    h = w.add(w.add(h, mean, tokens), when, tokens)
    h = w.real(w.op("QUANTIZE", [h], tokens, kind="i2", encoding=SITE), tokens)
    q = w.matmul(h, w.constant((weights["w2"] * WEIGHT_SCALE)[None], "f4"), tokens)
    if rank:
        a, b = (w.reshape(real[f"mid.to_q.lora_{k}"], [1, *shapes[f"mid.to_q.lora_{k}"]]) for k in "AB")
        q = w.add(q, w.matmul(w.matmul(h, a, (1, cells, rank), True), b, tokens, True), tokens)
    q = w.matmul(w.op("TANH", [q], tokens), w.constant(weights["w3"][None], "f4"), (1, cells, 4))
    q = w.reshape(w.transpose(q, [0, 2, 1], (1, 4, cells)), [1, 4, SIDE, SIDE])
    out = w.op("QUANTIZE", [q], (), out=w.tensor(OUTPUT, (1, 4, SIDE, SIDE), "i2", OUT))
    w.save(path, [sample, time, text, *slots.values()], out)
    given = {"sample": Port("int16", SAMPLE), "timestep": Port("float32"), "encoder_hidden_states": Port("float32")}
    _save_ports(path, given, {OUTPUT: Port("int16", OUT)})


def _save_ports(path: Path, inputs: dict[str, Port], outputs: dict[str, Port]) -> None:
    (path.parent / PORTS_FILE).write_bytes(canonical_json(Ports(inputs, outputs)))


def save_litert_text_encoder(path: Path, table: NDArray[Any]) -> None:
    """A row of the table for each token."""
    w = Writer()
    ids = w.tensor("input_ids", (1, LENGTH), "i4")
    rows = w.constant(table, "f4")
    out = w.tensor("last_hidden_state", (1, LENGTH, HIDDEN))
    w.op("GATHER", [rows, ids], (), ("GatherOptions", {}), out=out)
    w.save(path, [ids], out)
    _save_ports(path, {"input_ids": Port("int32")}, {"last_hidden_state": Port("float32")})


def save_litert_vae(root: Path, rng: np.random.Generator) -> None:
    """Blocks of pixels to 4 numbers and back, as the tiny bundle's."""
    image, latent = (1, 3, SIZE, SIZE), (1, 4, SIDE, SIDE)
    down, up = (rng.standard_normal((4, 3, FACTOR, FACTOR)).transpose(0, 2, 3, 1) / scale for scale in (8, 1))
    w = Writer()
    given, out = w.tensor("image", image), w.tensor("latent", latent)
    x = w.transpose(given, [0, 2, 3, 1], (1, SIZE, SIZE, 3))
    x = w.conv(x, w.constant(down, "f4"), 4, (1, SIDE, SIDE, 4), stride=FACTOR, padding=VALID)
    w.transpose(x, [0, 3, 1, 2], latent, out=out)
    _save_float(root / "vae_encoder/model.tflite", w, given, out)
    w = Writer()
    given, out = w.tensor("latent", latent), w.tensor("image", image)
    x = w.reshape(w.transpose(given, [0, 2, 3, 1], (1, SIDE, SIDE, 4)), [1, SIDE * SIDE, 4])
    x = w.matmul(x, w.constant(up.reshape(1, 4, -1), "f4"), (1, SIDE * SIDE, FACTOR * FACTOR * 3))
    blocks = [SIDE, SIDE, FACTOR, FACTOR, 3]
    x = w.transpose(w.reshape(x, blocks), [4, 0, 2, 1, 3], (3, SIDE, FACTOR, SIDE, FACTOR))
    w.reshape(x, [*image], out=out)
    _save_float(root / "vae_decoder/model.tflite", w, given, out)


def _save_float(path: Path, w: Writer, given: int, out: int) -> None:
    w.save(path, [given], out)
    names = [w.tensors[place].name.decode() for place in (given, out)]
    _save_ports(path, {names[0]: Port("float32")}, {names[1]: Port("float32")})
