"""Adapters, a graph that they bind to, and a graph that one would be merged into, all of Stable Diffusion 1.5's shapes.

Weights are random, and neither graph makes a picture: the first takes a number of each slot's A and B, so that a switch is a real one and a
wrong one shows; the second holds an int8 weight for each Linear and convolution, as a merged graph does, and fewer operators: it loads no
slower than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper
from safetensors.numpy import save_file
from torch import nn

from quad.core.digests import canonical_json, file_digest
from quad.core.manifest import AdapterManifest, BundleManifest, Component, FileEntry, LatentSpec, NoiseSchedule, TextSpec
from quad.core.profile import Profile
from quad.core.slots import NORMALISED, UNET, Slot, SlotMode, SlotTable
from quad.runtime.bundle import Bundle

RANK, DTYPE = 16, "int16"
OWN_RANKS = (16, 16, 8, 4)  # of adapters in turn: half of them are bound as they are mapped, half of them are padded
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_OPSETS = [helper.make_opsetid("", 21)]
_IR_VERSION = 10


def meta_unet() -> UNet2DConditionModel:
    """SD1.5's U-Net without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def attention_slots(unet: nn.Module, mode: SlotMode) -> SlotTable:
    """A slot at each of the 128 attention projections."""
    layers = ((path, layer) for path, layer in unet.named_modules() if path.endswith(_ATTENTION) and isinstance(layer, nn.Linear))
    slots = tuple(
        Slot(path=path, kind="linear", in_features=layer.in_features, out_features=layer.out_features, rank=RANK, dtype=DTYPE)
        for path, layer in layers
    )
    return SlotTable(slots, mode) if mode == NORMALISED else SlotTable(slots)


def write_adapters(root: Path, slots: SlotTable, count: int) -> Bundle:
    """A bundle of nothing but adapters, which differ in all their numbers."""
    profile = Profile(encodings={})
    names = tuple(f"noise{number:03}" for number in range(count))
    for number, name in enumerate(names):
        _write_adapter(root / "adapters" / name, name, slots, number)
    files = {f"adapters/{name}/{part}": FileEntry("", 0) for name in names for part in ("adapter.json", "adapter.safetensors")}
    manifest = BundleManifest(
        format_version=1,
        name="noise",
        target="cpu",
        precision="w8a16",
        size=512,
        components={UNET: Component("bound/model.onnx")},
        files=files,
        adapters=names,
        tasks={},
        schedule=NoiseSchedule(),
        latent=LatentSpec(channels=4, factor=8, scale=(), shift=()),
        text=TextSpec(length=77, pad_id=0, hidden=768),
        engines=("ort",),
        parents={"slots": slots.digest, "profile": profile.digest},
        quad_version="",
    )
    return Bundle(root=root, manifest=manifest, slots=slots, profile=profile)


def _write_adapter(folder: Path, name: str, slots: SlotTable, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rank, file = OWN_RANKS[seed % len(OWN_RANKS)], folder / "adapter.safetensors"
    draw = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for slot in slots.slots:
        tensors[slot.a_name] = draw.integers(-4000, 4000, (rank, slot.in_features), DTYPE)
        tensors[slot.b_name] = draw.integers(-4000, 4000, (slot.out_features, rank), DTYPE)
        if slots.normalised:
            tensors[slot.scale_name] = draw.integers(1, 4000, rank).astype(np.float32)
    save_file(tensors, file)
    parents = {"slots": slots.digest, "profile": Profile(encodings={}).digest}
    adapter_manifest = AdapterManifest(
        name=name, format_version=1, rank=rank, bits=16, size_bytes=file.stat().st_size, sha256=file_digest(file), parents=parents
    )
    (folder / "adapter.json").write_bytes(canonical_json(adapter_manifest))


def write_bound_graph(path: Path, slots: SlotTable) -> None:
    """A graph that adds up the first number of every slot input: bound like any other, and done in no time."""
    inputs, nodes, firsts = [], [helper.make_node("Identity", ["sample"], ["x"])], ["x"]
    for name, shape in slots.input_shapes().items():
        is_scales = name in slots.scale_inputs()
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT if is_scales else TensorProto.INT16, shape))
        nodes.append(helper.make_node("Slice", [name, "zero", "one"] if is_scales else [name, "zeros", "ones"], [f"{name}/first"]))
        nodes.append(helper.make_node("Cast", [f"{name}/first"], [f"{name}/float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Reshape", [f"{name}/float", "ones"], [f"{name}/added"]))
        firsts.append(f"{name}/added")
    nodes.append(helper.make_node("Sum", firsts, ["out"]))
    ends = [helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
            for name, values in {"zero": [0], "one": [1], "zeros": [0, 0], "ones": [1, 1]}.items()]  # fmt: skip
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 1])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "slots", [sample, *inputs], [out], ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION), path)


def write_merged_graph(path: Path, unet: nn.Module) -> None:
    """The weights of SD1.5's U-Net in int8, 860 MB beside a small graph that multiplies by each of them."""
    inputs, outputs, nodes, weights = [], [], [], []
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.data")
    with beside.open("wb") as stream:
        for name, shape in _layers(unet):
            weights += [_int8(stream, beside.name, name, shape), *_encoding(name, shape[0])]
            nodes += _layer(name, shape)
            inputs.append(helper.make_tensor_value_info(f"{name}.x", TensorProto.FLOAT, [1, *shape[1:]]))
            outputs.append(helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [1, shape[0], *[1] * (len(shape) - 2)]))
    graph = helper.make_graph(nodes, "merged", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION), path)


def _layers(unet: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield name, tuple(layer.weight.shape)


def _int8(stream: Any, file: str, name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    """A weight that lies in the file beside the graph."""
    values = np.random.default_rng(len(name)).integers(-127, 128, shape, np.int8)
    tensor = onnx.TensorProto(name=f"{name}.w", data_type=TensorProto.INT8, dims=shape, raw_data=b"")
    external_data_helper.set_external_data(tensor, file, stream.tell(), values.nbytes)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    stream.write(values.tobytes())
    return tensor


def _encoding(name: str, channels: int) -> list[onnx.TensorProto]:
    return [helper.make_tensor(f"{name}.s", TensorProto.FLOAT, [channels], [0.01] * channels)]


def _layer(name: str, shape: tuple[int, ...]) -> list[onnx.NodeProto]:
    """As quad writes it: weights are widened as the graph runs, or when it is loaded."""
    widened = helper.make_node("DequantizeLinear", [f"{name}.w", f"{name}.s"], [f"{name}.f"], axis=0)
    if len(shape) > 2:
        return [widened, helper.make_node("Conv", [f"{name}.x", f"{name}.f"], [f"{name}.y"])]
    return [widened, helper.make_node("Gemm", [f"{name}.x", f"{name}.f"], [f"{name}.y"], transB=1)]
