"""The graph of a text encoder with slots: every target's passes keep it and each of its slot inputs, and Qualcomm's chip takes it whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from numpy.typing import NDArray

from quad.compile.export import GraphSpec, export_graph
from quad.compile.passes import RemoveSites, passes_after, passes_before, run_passes, unobserved
from quad.compile.passes.contract import ContractTrial, check_contract
from quad.compile.placement.qdq import place_qdq
from quad.compile.targets import load_target, target_names
from quad.core.component_call import ComponentCall
from quad.core.profile import Profile
from quad.core.slots import TEXT_ENCODER, SlotTable
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.slots.layers import weights_of
from quad.model.slots.network import SlottedText, slot_networks
from quad.quantize.correct.simulate import simulated
from quad.quantize.encodings.rules import RULES, Rule, with_fine_tables
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.engines.ort import OrtSession, session_options

TOKENS, WORDS, CALLS = 16, 64, 3
VECTORS = torch.randn(1, TOKENS, 32, generator=torch.Generator().manual_seed(3))
LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Text:
    """A small text encoder with a slot at each of its layers, and two adapters."""

    network: SlottedText
    adapters: tuple[FloatAdapter, ...]
    examples: list[torch.Tensor]

    @property
    def table(self) -> SlotTable:
        return self.network.table

    @property
    def spec(self) -> GraphSpec:
        slots = {name: torch.from_numpy(array) for name, array in slot_inputs(self.adapters[0], self.table).items()}
        return GraphSpec(component=TEXT_ENCODER, inputs={"input_ids": self.examples[0]}, output="last_hidden_state", slots=slots)

    @property
    def open_spec(self) -> GraphSpec:
        """With the input through which textual inversions enter."""
        return replace(self.spec, inputs={"input_ids": self.examples[0], "embeddings": VECTORS})

    def output(self, ids: torch.Tensor, slots: dict[str, NDArray[np.float32]], vectors: torch.Tensor | None = None) -> NDArray[np.float32]:
        with torch.no_grad():
            return self.network(ids, vectors, slots={name: torch.from_numpy(array) for name, array in slots.items()}).numpy()


def draw_adapter(text: torch.nn.Module, name: str, rank: int, endings: tuple[str, ...], seed: int) -> FloatAdapter:
    rng = np.random.default_rng(seed)
    weights = {}
    for path, layer in text.named_modules():
        if isinstance(layer, torch.nn.Linear) and path.endswith(endings):
            shapes = (rank, layer.in_features), (layer.out_features, rank)
            weights[f"text_encoder.{path}"] = LowRank(*(rng.normal(scale=0.08, size=shape).astype(np.float32) for shape in shapes))
    return FloatAdapter(name=name, weights=weights, rank=rank, digest=name)


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def text(request: pytest.FixtureRequest) -> Text:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=TOKENS, hidden_act=request.param, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    encoder = transformers.CLIPTextModel(config).eval().requires_grad_(False)
    adapters = (draw_adapter(encoder, "all", 4, LINEARS, 1), draw_adapter(encoder, "some", 2, ("q_proj", "fc2"), 2))
    made = slot_networks(torch.nn.Identity(), encoder, adapters).text_encoder
    assert made is not None
    generator = torch.Generator().manual_seed(1)
    return Text(made, adapters, [torch.randint(3, WORDS, (1, TOKENS), generator=generator) for _ in range(CALLS)])


@pytest.fixture(scope="module")
def graph(text: Text) -> ir.Model:
    return export_graph(text.network, text.open_spec)


def trial_of(text: Text) -> ContractTrial:
    labels = {one.name if one else "base": slot_inputs(one, text.table) for one in (None, *text.adapters)}
    ids = text.examples[0].clone()
    ids[0, 3:5] = WORDS
    return ContractTrial(inputs={"input_ids": ids.numpy(), "embeddings": VECTORS.numpy()}, adapters=labels, tolerance=2e-5, group=1)


@pytest.mark.parametrize("target", ["cpu", "openvino", "qnn-htp"])
def test_passes_keep_the_function_and_every_slot_input(target: str, text: Text, graph: ir.Model) -> None:
    # That pass changes the type of the token ids; the chip's own test runs it.
    names = [name for name in load_target(target).passes if name != "narrow_ids"]
    before = run_passes(graph.clone(), passes_before(names))
    check_contract(graph, before, trial_of(text), f"{target}, before placement")
    plain = RemoveSites()(before.clone()).model
    after = run_passes(plain.clone(), passes_after(names))
    kept = check_contract(plain, after, trial_of(text), f"{target}, after placement")
    assert kept.effects is not None
    assert kept.effects[0] > 1e-4
    if "fuse_slots" in names:
        shared = [node for node in after.graph if node.op_type == "Split"]
        assert [len(node.outputs) for node in shared] == [3, 3]  # q, k and v of each layer share one down-projection


def profile_of(text: Text, table: SlotTable, rules: tuple[Rule, ...] = RULES) -> Profile:
    given = {one.name if one else "base": balanced_inputs(one, table) for one in (None, *text.adapters)}
    feeds = [Feed(name, partial(text.output, ids, slots)) for name, slots in given.items() for ids in text.examples]
    statistics = observe({TEXT_ENCODER: text.network}, feeds)
    return unify(statistics, {TEXT_ENCODER: weights_of(text.network)}, table, text.adapters, UnifyOptions(rules=rules))


def test_targets_of_integers_alone_read_no_table_by_columns() -> None:
    targets = [load_target(name) for name in target_names()]
    assert [target.takes_byte_tables for target in targets] == [not target.integers_only for target in targets]


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_the_token_table_is_stored_as_integers_and_only_its_rows_become_floats(
    target: str, text: Text, graph: ir.Model, tmp_path: Path
) -> None:
    table = integer_slots(text.table, 16)
    profile = profile_of(text, table)
    placed = place_qdq(graph.clone(), profile.component(TEXT_ENCODER), table, load_target(target).for_profile(profile)).model
    (stored,) = [value for name, value in placed.graph.initializers.items() if name.endswith("token_embedding.weight")]
    assert stored.dtype == ir.DataType.INT8
    assert {node.op_type for node, _ in stored.uses()} == {"Gather"}
    ir.save(placed, tmp_path / "model.onnx")
    session = OrtSession(tmp_path / "model.onnx", session_options("w8a16", 1))
    for adapter in (None, *text.adapters):
        integers = quantize_adapter(adapter, table, profile)
        session.bind(integers)
        for places in ((), (3, 4)):
            ids = text.examples[0].clone()
            ids[0, places] = WORDS
            found = session.run({"input_ids": ids.numpy(), "embeddings": VECTORS.numpy()})
            with simulated(text.network, profile, TEXT_ENCODER):
                expected = text.output(ids, dequantize_adapter(integers, table, profile), VECTORS if places else None)
            np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_chip_takes_it_whole_and_carries_the_adapters(text: Text, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from quad.core.decibels import array_sqnr_db
    from quad.runtime.engines.qnn import open_engine
    from tests.compile.qnn.placed_htp import htp_compiler

    table = integer_slots(text.table, 16)
    given = {one.name if one else "base": balanced_inputs(one, table) for one in (None, *text.adapters)}
    profile = profile_of(text, table, with_fine_tables(RULES))
    calls = [
        ComponentCall(component=TEXT_ENCODER, source=name, inputs={"input_ids": ids.numpy()}, slots=slots)
        for name, slots in given.items()
        for ids in text.examples
    ]
    compiler = htp_compiler(profile, table, calls, tmp_path)
    made = compiler.artifact(text.network, text.spec, unobserved)
    assert (made.placement["on_cpu"], made.placement["partitions"]) == (0, 1)
    assert set(made.agreement_db) == {"base", "all", "some"}
    assert min(made.agreement_db.values()) > 50.0
    session = open_engine("w8a16").load(tmp_path / TEXT_ENCODER / "model.onnx", 1)
    for adapter in (None, *text.adapters):
        session.bind(quantize_adapter(adapter, table, profile))
        name = adapter.name if adapter else "base"
        for ids in text.examples:
            expected = text.output(ids, given[name])
            assert array_sqnr_db(expected, session.run({"input_ids": ids.numpy()})) > 34.0, name
