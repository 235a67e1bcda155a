"""Names of tensors: built and taken apart again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.core import tensor_names
from quad.core.slots import Slot
from quad.core.tensor_names import Role, TensorName, parse, paths_with, role_of

PATH = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
paths = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="._"), min_size=1)


@given(path=paths, role=st.sampled_from(Role))
def test_a_name_that_was_built_parses_into_its_parts(path: str, role: Role) -> None:
    assert parse(str(TensorName(path, role))) == TensorName(path, role)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (tensor_names.weight_name, f"{PATH}.weight"),
        (tensor_names.bias_name, f"{PATH}.bias"),
        (tensor_names.input_name, f"{PATH}.in"),
        (tensor_names.skip_input_name, f"{PATH}.in_skip"),
        (tensor_names.lora_a_name, f"{PATH}.lora_A"),
        (tensor_names.lora_b_name, f"{PATH}.lora_B"),
        (tensor_names.lora_mid_name, f"{PATH}.lora_mid"),
        (tensor_names.lora_scale_name, f"{PATH}.lora_scale"),
        (tensor_names.lora_scales_name, f"{PATH}.lora_scales"),
        (tensor_names.gain_name, f"{PATH}.gain"),
    ],
)
def test_names_are_those_of_the_profile_files(build, name: str) -> None:  # type: ignore[no-untyped-def]
    assert build(PATH) == name
    assert parse(name).path == PATH
    assert str(parse(name)) == name


def test_an_attention_has_four_operands_in_a_fixed_order() -> None:
    assert tensor_names.attention_names("attn") == ("attn.q", "attn.k", "attn.v", "attn.p")


def test_the_graph_inputs_of_a_slot_are_tensor_names() -> None:
    slot = Slot(path="proj_in", kind="linear", in_features=8, out_features=8, rank=4)
    assert (slot.a_name, slot.b_name) == (tensor_names.lora_a_name("proj_in"), tensor_names.lora_b_name("proj_in"))
    assert (role_of(slot.a_name), role_of(slot.b_name)) == (Role.LORA_A, Role.LORA_B)


@pytest.mark.parametrize("name", ["in", "weight", "conv_in", "conv.inner", "mm_7/dq", "", "a.Q", "a.lora_a"])
def test_a_name_of_another_grammar_has_no_role(name: str) -> None:
    assert role_of(name) is None
    with pytest.raises(ValueError, match="is no tensor name"):
        parse(name)


def test_paths_of_one_role_come_in_the_order_of_their_names() -> None:
    names = ["b.weight", "a.in", "a.weight", "x", "a.in_skip"]
    assert paths_with(Role.WEIGHT, names) == ["b", "a"]
    assert paths_with(Role.INPUT, names) == ["a"]


@given(name=paths)
def test_a_quantize_node_names_its_tensor_again(name: str) -> None:
    assert tensor_names.quantized_tensor(tensor_names.quantize_node(name)) == name
    assert tensor_names.quantized_tensor(tensor_names.dequantize_node(name)) is None
