"""Normalised slots are merged with their scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace

from quad.core.decibels import array_sqnr_db
from quad.core.profile import Profile
from quad.export.bake.graph import merge_graph
from quad.export.bake.updates import slot_updates
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.engines.engine import open_engine
from tests.export.bake.test_bake import _call
from tests.runtime.conftest import NORMALISED_SLOTS, adapter_tensors
from tests.runtime.tiny_unet import LATTICE, UNIT, float_unet, real_slots, save_unet

WEIGHTS = {"first": 0.5, "second": -2.0}


def test_the_graph_computes_the_sum_at_any_strength(tmp_path: Path) -> None:
    steps = {name: (UNIT if name.endswith("B") else 1.0) / 32767 for name in NORMALISED_SLOTS.input_shapes() if "scales" not in name}
    profile = Profile(encodings={"unet": {name: replace(LATTICE, scale=(step,)) for name, step in steps.items()}})
    rng = np.random.default_rng(0)
    ranks = sum(slot.rank for slot in NORMALISED_SLOTS.slots)
    parts, real = {}, {}
    for seed, name in enumerate(WEIGHTS):
        scales = {"unet.lora_scales": rng.uniform(0.05, 1.0, ranks).astype(np.float32)}
        integers = {key: array for key, array in adapter_tensors(seed, 4).items() if key in steps}
        parts[name] = Buffers(integers, scales=scales)
        real[name] = real_slots({**integers, **scales}, NORMALISED_SLOTS)
    save_unet(tmp_path / "unet/model.onnx", normalised=True)
    model = ir.load(tmp_path / "unet/model.onnx")
    merge_graph(model, NORMALISED_SLOTS, slot_updates(parts, WEIGHTS, NORMALISED_SLOTS, profile), bits=16)
    (tmp_path / "merged").mkdir()
    ir.save(model, tmp_path / "merged/model.onnx")
    both = {
        key: np.concatenate([part[key] * (WEIGHTS[name] if axis else 1.0) for name, part in real.items()], axis)
        for key in real["first"]
        for axis in [int(key.endswith("B"))]
    }
    session = open_engine("ort", (), "w8a16").load(tmp_path / "merged/model.onnx", 1)
    assert session.inputs.keys() == _call(1).keys()
    assert array_sqnr_db(float_unet(_call(1), both), session.run(_call(1))) > 60
