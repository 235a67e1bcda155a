"""Weights of 4 bits on the HTP: signed, symmetric, one scale for each output channel; its binary computes what the graph says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from quad.compile.graph_specs import sinusoid_of
from quad.compile.passes import unobserved
from quad.compile.placement.integer_graph import integer_feeds, place_integers, with_sinusoid
from quad.compile.qnn.htp import compile_htp
from quad.core.slots import UNET
from quad.lora.fit.integers import integer_slots
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.quantize.correct.four_bits import four_bit_encoding
from quad.quantize.correct.layer_choice import four_bit_paths
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from tests.compile.qnn.placed_htp import SOC, TARGET, Placed, given_calls, lowered


@pytest.fixture(scope="module")
def narrow(tiny: Any) -> Placed:
    weights = weights_of(tiny.network)
    given = {
        name: four_bit_encoding(weights[name], signed=True) for path in four_bit_paths(UNET, tiny.network) if (name := f"{path}.weight")
    }
    table = integer_slots(tiny.table, 16, TARGET.int16_largest)
    statistics = observe({"unet": tiny.network}, [Feed("base", partial(tiny.torch_output, slot_inputs(None, tiny.table)))])
    options = UnifyOptions(int16_largest=TARGET.int16_largest, given={"unet": given})
    profile = unify(statistics, {"unet": weights}, table, tiny.adapters, options)
    model, calls = lowered(tiny, profile.component("unet")), given_calls(tiny)
    graph = place_integers(model.clone(), profile.component("unet"), calls, TARGET, unobserved)
    return Placed(with_sinusoid(graph, sinusoid_of(tiny.base)), model, calls, profile, table)


def test_their_integers_lie_two_in_a_byte(narrow: Placed) -> None:
    four = {name: encoding for name, encoding in narrow.profile.component("unet").items() if encoding.bits == 4}
    constants = narrow.graph.model.graph.initializers.values()
    stored = [value for value in constants if value.dtype == ir.DataType.INT4 and value.shape.rank() > 1]
    assert len(stored) == len(four) > 10
    assert not any(any(encoding.zero_point) for encoding in four.values())


def test_the_binary_computes_what_the_graph_says(narrow: Placed, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from quad.compile.qnn.emulate import check_agreement

    compiled = compile_htp(narrow.graph, tmp_path / "unet", SOC)
    assert compiled.placement["on_cpu"] == 0
    assert compiled.placement["partitions"] == 1
    feeds = integer_feeds(narrow.graph, narrow.calls[:1], narrow.profile.component("unet"))
    assert min(check_agreement(narrow.graph, tmp_path / "unet" / "model.onnx", SOC, feeds).values()) > 45
