"""The hand-made bundle with stored calls and a site that carries its name, and a later LoRA for it: admission without a model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from quad.core.component_call import UNET_INPUTS
from quad.core.digests import canonical_json, file_digest
from quad.core.manifest import PROBES_FILE, AdapterManifest, Component, SizedGraphs
from quad.core.profile import GroupRanges
from quad.core.slots import UNET
from quad.runtime.bundle import open_bundle
from tests.runtime.conftest import COMPONENTS, PROFILE, SLOTS, write_manifest
from tests.runtime.tiny_unet import HIDDEN, LENGTH, SIDE, SITE

SHAPES = {"sample": (1, 9, SIDE, SIDE), "timestep": (1,), "encoder_hidden_states": (1, LENGTH, HIDDEN)}


def freeze(bundle: Path, root: Path, mid_end: float = 0.0) -> Path:
    """A copy of the bundle at `root` to which adapters can be admitted.

    Args:
        mid_end: where the range of the linear slot's `A x` ends, 0 for no such site.
    """
    shutil.copytree(bundle, root)
    rng = np.random.default_rng(1)
    calls = {f"{i}/{name}": rng.standard_normal(SHAPES[name]).astype(np.float32) for i in range(2) for name in UNET_INPUTS}
    save_file(calls, root / PROBES_FILE)
    model = onnx.load(root / "unet/model.onnx")
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.name = "mid.to_q.in/Q"
    if mid_end:
        _add_mid_site(model.graph, mid_end)
    onnx.save(model, root / "unet/model.onnx")
    write_manifest(root, parents={"base": "0" * 64, "graph": "0" * 64, **open_bundle(bundle).digests})
    return root


def regroup(frozen: Path, root: Path, widened: float, members: Sequence[str] = (), louder: int = 1) -> Path:
    """A copy at `root` with a second group of adapters; its one activation reaches so many times as far.

    Args:
        members: of that group.
        louder: how many times as large its members' integers are.
    """
    shutil.copytree(frozen, root)
    wide = msgspec.structs.replace(SITE, scale=(SITE.scale[0] * widened,))
    model = onnx.load(root / "unet/model.onnx")
    for constant in model.graph.initializer:
        if constant.name == "as":
            constant.CopyFrom(numpy_helper.from_array(np.float32(wide.scale[0]), "as"))
    onnx.save(model, root / "unet/wide.onnx")
    profile = msgspec.structs.replace(PROFILE, groups=(GroupRanges(encodings={UNET: {"mid.to_q.in": wide}}, mode="unified"),))
    (root / "profile.json").write_bytes(canonical_json(profile))
    parents = {"base": "0" * 64, "graph": "0" * 64, "slots": SLOTS.digest, "profile": profile.digest}
    for file in root.glob("adapters/*/adapter.json"):
        manifest = msgspec.json.decode(file.read_bytes(), type=AdapterManifest)
        manifest = msgspec.structs.replace(manifest, parents=parents)
        if manifest.name in members:
            tensors = file.with_name("adapter.safetensors")
            save_file({name: array * np.int16(louder) for name, array in load_file(tensors).items()}, tensors)
            manifest = msgspec.structs.replace(manifest, group=1, sha256=file_digest(tensors))
        file.write_bytes(canonical_json(manifest))
    parts = {name: Component(f"{name}/model.onnx") for name in COMPONENTS}
    parts[UNET] = Component("unet/model.onnx", groups=(SizedGraphs("unet/wide.onnx"),))
    write_manifest(root, parents=parents, components=parts)
    return root


def _add_mid_site(graph: onnx.GraphProto, end: float) -> None:
    """Q and DQ of the linear slot's `A x`."""
    constants = {"ms": np.float32(end / 32767), "mz": np.uint16(32768)}
    graph.initializer.extend(numpy_helper.from_array(np.array(array), name) for name, array in constants.items())
    place = next(index for index, node in enumerate(graph.node) if "q_mid" in node.output)
    graph.node[place].output[0] = "q_mid_x"
    graph.node.insert(place + 1, helper.make_node("QuantizeLinear", ["q_mid_x", "ms", "mz"], ["q_mid_q"], name="mid.to_q.lora_mid/Q"))
    graph.node.insert(place + 2, helper.make_node("DequantizeLinear", ["q_mid_q", "ms", "mz"], ["q_mid"]))


def write_later_lora(file: Path, factor: float = 0.3, rank: int = 2) -> Path:
    """A LoRA of both slots, by diffusers' names."""
    rng, tensors = np.random.default_rng(7), {}
    for slot in SLOTS.slots:
        a, b = (slot.in_features, *slot.kernel) if slot.kind == "conv" else (slot.in_features,), (1, 1) if slot.kind == "conv" else ()
        tensors[f"unet.{slot.path}.lora_A.weight"] = rng.standard_normal((rank, *a)).astype(np.float32)
        tensors[f"unet.{slot.path}.lora_B.weight"] = (rng.standard_normal((slot.out_features, rank, *b)) * factor).astype(np.float32)
    save_file(tensors, file)
    return file
