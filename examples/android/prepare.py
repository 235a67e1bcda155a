"""What the Android sample needs of a bundle for LiteRT, into its `app/src`: the files to run and to test a device with.

    python examples/android/prepare.py BUNDLE

Needs NumPy and ai_edge_litert alone. The bundle's own conformance vectors are the instrumented test's; the noise that their pictures begin
with is drawn here, because a device has no NumPy.

`widen.tflite` lies beside a graph whose output has 16 bits. LiteRT's Kotlin API writes 16-bit tensors as bytes, but `readInt8` gives as
many bytes as the tensor has elements, half of them: so the output goes through a graph of one operator that makes floats of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from pathlib import Path

import flatbuffers
import numpy as np
import same_steps as steps
from ai_edge_litert import schema_py_generated as schema

APP = Path(__file__).parent / "app/src"
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


def write_floats(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file of float32 tensors."""
    header, data = {}, b""
    for name, array in tensors.items():
        begin, data = len(data), data + np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def widening(name: str, shape: list[int], scale: float) -> bytes:
    """A graph of one DEQUANTIZE: int16 of this scale to float32, under the name and under `float`."""
    model, graph, buffer, code = schema.ModelT(), schema.SubGraphT(), schema.BufferT(), schema.OperatorCodeT()
    tensors = []
    for each, kind in ((name, schema.TensorType.INT16), ("float", schema.TensorType.FLOAT32)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = each.encode(), shape, kind, 0
        tensors.append(tensor)
    tensors[0].quantization = schema.QuantizationParametersT()
    tensors[0].quantization.scale, tensors[0].quantization.zeroPoint = [scale], [0]
    operator, signature, ends = schema.OperatorT(), schema.SignatureDefT(), []
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    for index, tensor in enumerate(tensors):
        end = schema.TensorMapT()
        end.name, end.tensorIndex = tensor.name, index
        ends.append(end)
    signature.signatureKey, signature.subgraphIndex, signature.inputs, signature.outputs = b"serving_default", 0, ends[:1], ends[1:]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 3
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [operator], [0], [1]
    model.version, model.subgraphs, model.buffers, model.operatorCodes, model.signatureDefs = 3, [graph], [buffer], [code], [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def copy_bundle(bundle: steps.Bundle, folder: Path) -> None:
    """The files that the app reads."""
    shutil.rmtree(folder, ignore_errors=True)
    names = ["bundle.json", "slots.json", "profile.json", "tokenizer/tokenizer.json", "conformance.json", "conformance.safetensors"]
    names += [f"{component}/{file}" for component in COMPONENTS for file in ("model.tflite", "ports.json")]
    names += [f"adapters/{name}/{file}" for name in bundle.manifest["adapters"] for file in ("adapter.json", "adapter.safetensors")]
    for name in names:
        if (bundle.root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / name, folder / name)
    for component in COMPONENTS:
        graph = bundle.graph(component)
        port = graph.ports["outputs"][graph.output["name"]]
        if port["dtype"] == "int16":
            made = widening(graph.output["name"], [*map(int, graph.output["shape"])], port["encoding"]["scale"][0])
            (folder / component / "widen.tflite").write_bytes(made)


def picture_noise(bundle: steps.Bundle) -> dict[str, np.ndarray]:
    """Seed -> the first noise of the conformance vectors' pictures, which only NumPy draws."""
    vectors = json.loads((bundle.root / "conformance.json").read_text())
    return {str(picture["seed"]): steps.first_noise(bundle, picture["seed"]) for picture in vectors["pictures"]}


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--app", type=Path, default=APP, help="where the project's sources are")
    asked = parser.parse_args(arguments or None)
    bundle = steps.open_bundle(asked.bundle)
    copy_bundle(bundle, asked.app / "main/assets/bundle")
    tests = asked.app / "androidTest/assets"
    tests.mkdir(parents=True, exist_ok=True)
    write_floats(tests / "noise.safetensors", picture_noise(bundle))
    print(f"{asked.app}: {sum(file.stat().st_size for file in asked.app.rglob('assets/**/*') if file.is_file())} bytes of assets")


if __name__ == "__main__":
    main()
