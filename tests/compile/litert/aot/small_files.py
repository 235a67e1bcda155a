"""`.tflite` files of a few operators: a slot's products, and an operator that is on no NPU's list, by the schema's own classes; a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from quad.compile.litert.flatbuffer import serialize
from quad.compile.litert.rules import lower
from quad.compile.passes import run_passes, unobserved
from quad.compile.placement.integer_graph import integer_feeds, place_integers
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall

TOKENS, WIDTH, RANK = 4, 8, 2
RANGES = {"x": 4.5, "fc.lora_A": 1.5, "fc.lora_B": 1.5, "mid": 4.5, "delta": 3.0, "y": 5.0}  # of real numbers, filled by `slot_feed`


def _tensor(name: str, shape: Sequence[int], kind: int, scale: float | None) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.hasRank = name, list(shape), kind, True
    if scale is not None:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = np.array([scale], np.float32), np.array([0], np.int64)
    return tensor


def _file(
    tensors: Sequence[Any], operators: Sequence[tuple[int, int, Sequence[int], int, Any]], inputs: Sequence[int], output: int
) -> bytes:
    """Operators are (code, version, inputs, output, options)."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, [schema.BufferT()], [graph], []
    graph.tensors, graph.inputs, graph.outputs, graph.operators = list(tensors), list(inputs), [output], []
    for index, (code, version, read, written, options) in enumerate(operators):
        kind, node = schema.OperatorCodeT(), schema.OperatorT()
        kind.builtinCode, kind.deprecatedBuiltinCode, kind.version = code, min(code, 127), version
        node.opcodeIndex, node.inputs, node.outputs = index, list(read), [written]
        if options is not None:
            node.builtinOptions = options
            node.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        model.operatorCodes.append(kind)
        graph.operators.append(node)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def slot_file() -> bytes:
    """`x + B (A x)` of integers: A and B come as inputs, as a pack has them."""
    kind = schema.TensorType.INT16
    shapes = {"x": (1, TOKENS, WIDTH), "fc.lora_A": (1, RANK, WIDTH), "fc.lora_B": (1, WIDTH, RANK), "mid": (1, TOKENS, RANK),
              "delta": (1, TOKENS, WIDTH), "y": (1, TOKENS, WIDTH)}  # fmt: skip
    tensors = [_tensor(name, shape, kind, RANGES[name] / 32767) for name, shape in shapes.items()]
    product, total = schema.BatchMatMulOptionsT(), schema.AddOptionsT()
    product.adjY = True
    code = schema.BuiltinOperator
    operators = [(code.BATCH_MATMUL, 3, (0, 1), 3, product), (code.BATCH_MATMUL, 3, (3, 2), 4, product), (code.ADD, 3, (0, 4), 5, total)]
    return _file(tensors, operators, inputs=(0, 1, 2), output=5)


def control_file() -> bytes:
    """`sign(x) + x` in floats."""
    tensors = [_tensor(name, (1, WIDTH), schema.TensorType.FLOAT32, None) for name in ("x", "sign", "y")]
    code = schema.BuiltinOperator
    operators = [(code.SIGN, 1, (0,), 1, None), (code.ADD, 1, (1, 0), 2, schema.AddOptionsT())]
    return _file(tensors, operators, inputs=(0,), output=2)


def slot_feed(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"x": (1, TOKENS, WIDTH), "fc.lora_A": (1, RANK, WIDTH), "fc.lora_B": (1, WIDTH, RANK)}
    real = {name: generator.standard_normal(shape).clip(-4, 4) * (RANGES[name] / 4.5) for name, shape in shapes.items()}
    return {name: np.round(values / (RANGES[name] / 32767)).astype(np.int16) for name, values in real.items()}


def norm_file() -> tuple[bytes, int, dict[str, np.ndarray]]:
    """A GroupNorm of groups that differ three thousand times, as the backend writes it; the number of its operators, and a feed."""
    size, ones = np.geomspace(0.02, 60.0, 8).astype(np.float32), np.ones(16, np.float32)
    x = np.random.default_rng(0).standard_normal((1, 16, 6, 6)).astype(np.float32) * np.repeat(size, 2)[:, None, None]
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], name="norm", num_groups=8)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
    constants = [numpy_helper.from_array(array, name) for name, array in (("g", ones), ("b", 0 * ones))]
    graph = helper.make_graph([node], "norm", ends[:1], ends[1:], constants)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    calls, target = [ComponentCall(source="base", inputs={"x": x})], load_target("litert")
    placed = place_integers(run_passes(model, ["write_norms"]), {}, calls, target, unobserved)
    lowered = lower(placed.model)
    return serialize(lowered), len(lowered.operators), integer_feeds(placed, calls, {})["base"]
