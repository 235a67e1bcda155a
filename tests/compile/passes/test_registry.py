"""Passes by name: run in order, observed, refused when unknown, held to what they promise."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from quad.compile.passes import PASSES, NamedPass, passes_after, passes_before, registry, run_passes
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.targets import load_target, target_names
from quad.core.errors import UsageError
from tests.compile.passes.conftest import Sketch, operators, site_names

# These change what the graph is fed with, by design.
NEW_INPUTS = {"host_timestep", "narrow_ids"}
# Its layers read a matrix, behind a Site of their own beside the one that slots read.
SITES_TWICE = {"linear_to_gemm"}


@pytest.mark.parametrize("name", [name for name in PASSES if name not in NEW_INPUTS])
def test_every_pass_alone_keeps_the_function_the_slots_and_the_sites(tiny: Any, tiny_trial: ContractTrial, name: str) -> None:
    after = run_passes(tiny.graph.clone(), [name])
    check_contract(tiny.graph, after, tiny_trial, name)
    assert set(site_names(after)) == set(tiny.network.sites)
    assert all(count == 1 or site.endswith(".p") or name in SITES_TWICE for site, count in site_names(after).items())


def test_all_of_them_in_a_row_do_too(tiny: Any, tiny_trial: ContractTrial) -> None:
    names = ["plain_arithmetic", "fuse_gelu", "to_group_norm", "flatten_small_silu", "linear_to_conv", "merge_equal", "cancel_transposes",
             "split_heads", "decompose_layer_norm", "fold_constants", "drop_dead", "merge_equal"]  # fmt: skip
    check_contract(tiny.graph, run_passes(tiny.graph.clone(), names), tiny_trial, "all")


def test_the_observer_sees_each_graph_in_order(tiny: Any) -> None:
    seen: list[tuple[str, int]] = []
    run_passes(
        tiny.graph.clone(), ["split_heads", "decompose_layer_norm"], lambda name, model: seen.append((name, operators(model)["Softmax"]))
    )
    assert [name for name, _ in seen] == ["split_heads", "decompose_layer_norm"]
    assert seen[0][1] == seen[1][1] > operators(tiny.graph)["Softmax"]


def test_an_unknown_name_is_refused_before_anything_runs(tiny: Any) -> None:
    model = tiny.graph.clone()
    with pytest.raises(UsageError, match=r"pass: expected .*split_heads.*, found split_hair"):
        run_passes(model, ["split_heads", "split_hair"])
    assert operators(model) == operators(tiny.graph)


def test_each_runs_on_its_side_of_placement() -> None:
    names = ("split_heads", "fold_qdq", "merge_equal", "fold_scales")
    assert passes_before(names) == ("split_heads", "merge_equal")
    assert passes_after(names) == ("fold_qdq", "fold_scales")


@pytest.mark.parametrize("name", target_names())
def test_targets_name_passes_that_there_are(name: str) -> None:
    assert set(load_target(name).passes) <= set(PASSES)


def test_a_pass_that_does_not_keep_its_promise_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(registry.SplitHeads):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model, False)

    monkeypatch.setattr(registry, "PASSES", {"split_heads": NamedPass(Idle)})
    sketch = Sketch()
    q, k, v = (sketch.input(name, 1, 2, 4, 4) for name in "qkv")
    p = sketch.value("Softmax", [sketch.value("MatMul", [q, k], 1, 2, 4, 4)], 1, 2, 4, 4, axis=-1)
    with pytest.raises(ir.passes.PostconditionError, match="still serves several heads"):
        run_passes(sketch.model(sketch.value("MatMul", [p, v], 1, 2, 4, 4)), ["split_heads"])
