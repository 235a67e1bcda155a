"""The tiny U-Net placed and compiled for the HTP, with LoRA weights of 16 and of 8 bits: fixtures of several files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from quad.build.build import STAGES
from quad.compile.backend import BackendRequest, CompileContext, open_backend
from quad.compile.compiler import Compiler
from quad.compile.graph_specs import sinusoid_of
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, host_inputs, integer_feeds, lower_layers, place_integers, with_sinusoid
from quad.compile.qnn.chips import soc_named
from quad.compile.qnn.htp import compile_htp
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding
from quad.core.profile import Profile
from quad.core.progress import StageClock, silent
from quad.core.slots import SlotTable
from quad.lora.fit.integers import balanced_inputs, integer_slots
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify

TARGET = load_target("qnn-htp")
SOC = soc_named("SM8750")


def htp_compiler(profile: Profile, slots: SlotTable, calls: list[ComponentCall], scratch: Path) -> Compiler:
    """As a build for SM8750 compiles, without what it writes for the vendor's converter."""
    context = CompileContext(target=TARGET, profile=profile, slots=slots, clock=StageClock(STAGES, silent), scratch=scratch, calls=calls)
    return Compiler(open_backend(BackendRequest(TARGET, scratch / "unused")), context)


@dataclass(frozen=True)
class Placed:
    """The tiny U-Net for the HTP, and what it was placed by."""

    graph: IntegerGraph
    floats: ir.Model
    calls: list[ComponentCall]
    profile: Profile
    table: SlotTable


def given_calls(tiny: Any) -> list[ComponentCall]:
    calls = [ComponentCall(source=a.name if a else "base", inputs=tiny.inputs, slots=balanced(tiny, a)) for a in (None, *tiny.adapters)]
    return host_inputs(calls, sinusoid_of(tiny.base))


def balanced(tiny: Any, adapter: Any) -> dict[str, NDArray[np.float32]]:
    return balanced_inputs(adapter, tiny.table) if adapter else slot_inputs(None, tiny.table)


def lowered(tiny: Any, encodings: Mapping[str, Encoding]) -> ir.Model:
    return lower_layers(run_passes(tiny.graph.clone(), passes_before(TARGET.passes)), encodings, TARGET, unobserved)


@pytest.fixture(scope="module", params=[16, 8])
def placed(tiny: Any, request: pytest.FixtureRequest) -> Placed:
    table = integer_slots(tiny.table, request.param, TARGET.int16_largest)
    feeds = [Feed(a.name, partial(tiny.torch_output, slot_inputs(a, tiny.table))) for a in tiny.adapters]
    statistics = observe({"unet": tiny.network}, feeds)
    profile = unify(
        statistics,
        {"unet": weights_of(tiny.network)},
        table,
        tiny.adapters,
        UnifyOptions(lora_bits=request.param, int16_largest=TARGET.int16_largest),
    )
    model, calls = lowered(tiny, profile.component("unet")), given_calls(tiny)
    graph = place_integers(model.clone(), profile.component("unet"), calls, TARGET, unobserved)
    return Placed(with_sinusoid(graph, sinusoid_of(tiny.base)), model, calls, profile, table)


def fed(placed: Placed) -> dict[str, dict[str, NDArray[Any]]]:
    return integer_feeds(placed.graph, placed.calls, placed.profile.component("unet"))


@pytest.fixture(scope="module")
def binary(placed: Placed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime_qnn")
    folder = tmp_path_factory.mktemp("htp") / "unet"
    compiled = compile_htp(placed.graph, folder, SOC)
    assert compiled.placement == {"nodes": placed.graph.nodes, "on_target": placed.graph.nodes, "on_cpu": 0, "partitions": 1}
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model_qnn.bin", "ports.json"}
    return folder / "model.onnx"
