"""The hand-made bundle with stored calls and a site that carries its name, and a later LoRA for it: admission without a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from quad.core.component_call import UNET_INPUTS
from quad.core.manifest import PROBES_FILE
from tests.runtime.conftest import PROFILE, SLOTS, write_manifest
from tests.runtime.tiny_unet import HIDDEN, LENGTH, SIDE

SHAPES = {"sample": (1, 9, SIDE, SIDE), "timestep": (1,), "encoder_hidden_states": (1, LENGTH, HIDDEN)}


def freeze(bundle: Path, root: Path) -> Path:
    """A copy of the bundle at `root` to which adapters can be admitted."""
    shutil.copytree(bundle, root)
    rng = np.random.default_rng(1)
    calls = {f"{i}/{name}": rng.standard_normal(SHAPES[name]).astype(np.float32) for i in range(2) for name in UNET_INPUTS}
    save_file(calls, root / PROBES_FILE)
    model = onnx.load(root / "unet/model.onnx")
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.name = "mid.to_q.in/Q"
    onnx.save(model, root / "unet/model.onnx")
    write_manifest(root, parents={"base": "0" * 64, "graph": "0" * 64, "slots": SLOTS.digest, "profile": PROFILE.digest})
    return root


def write_later_lora(file: Path, factor: float = 0.3, rank: int = 2) -> Path:
    """A LoRA of both slots, by diffusers' names."""
    rng, tensors = np.random.default_rng(7), {}
    for slot in SLOTS.slots:
        a, b = (slot.in_features, *slot.kernel) if slot.kind == "conv" else (slot.in_features,), (1, 1) if slot.kind == "conv" else ()
        tensors[f"unet.{slot.path}.lora_A.weight"] = rng.standard_normal((rank, *a)).astype(np.float32)
        tensors[f"unet.{slot.path}.lora_B.weight"] = (rng.standard_normal((slot.out_features, rank, *b)) * factor).astype(np.float32)
    save_file(tensors, file)
    return file
