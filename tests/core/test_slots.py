"""The slot table: its digest, its graphs' inputs, and the scales of normalised slots."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quad.core.digests import canonical_json
from quad.core.padding import scale_vectors, trim
from quad.core.slots import NORMALISED, SEARCHED, TEXT_ENCODER, UNET, Slot, SlotTable

SLOTS = (
    Slot(path="conv_in", kind="conv", in_features=4, out_features=8, rank=3, kernel=(3, 3)),
    Slot(path="mid.to_q", kind="linear", in_features=8, out_features=8, rank=2, dtype="int16"),
    Slot(path="text_encoder.q", kind="linear", in_features=6, out_features=6, rank=4, component=TEXT_ENCODER),
)
TABLE = SlotTable(SLOTS, NORMALISED)


def test_the_digest_of_searched_slots_is_that_of_tables_without_a_mode() -> None:
    assert canonical_json(SlotTable(SLOTS)) == canonical_json({"slots": SLOTS})
    assert SlotTable(SLOTS).digest == "3f26123aa0b680792a52eed1b1e27d7f0f295b942178633f0353d7eceb622568"


def test_the_mode_is_part_of_the_digest_and_survives_the_file() -> None:
    assert TABLE.digest != SlotTable(SLOTS).digest
    assert msgspec.json.decode(canonical_json(TABLE), type=SlotTable) == TABLE
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(canonical_json({"slots": SLOTS, "mode": SEARCHED}), type=SlotTable)


def test_each_graph_has_one_input_of_scales_behind_its_slots() -> None:
    assert not SlotTable(SLOTS).normalised
    assert SlotTable(SLOTS).scale_inputs() == {}
    assert TABLE.of(UNET).input_shapes() == {**SlotTable(SLOTS[:2]).input_shapes(), "unet.lora_scales": (5,)}
    assert TABLE.of(TEXT_ENCODER).input_shapes() == {**SlotTable(SLOTS[2:]).input_shapes(), "text_encoder.lora_scales": (4,)}
    assert TABLE.input_shapes().keys() == TABLE.of(UNET).input_shapes().keys() | TABLE.of(TEXT_ENCODER).input_shapes().keys()


def test_scales_of_smaller_ranks_and_of_absent_slots_are_zeros() -> None:
    tensors = {"mid.to_q.lora_scale": np.array([0.5], np.float32), "text_encoder.q.lora_scale": np.arange(4, dtype=np.float32)}
    vectors = scale_vectors(tensors, TABLE)
    assert {name: vector.tolist() for name, vector in vectors.items()} == {
        "unet.lora_scales": [0, 0, 0, 0.5, 0],
        "text_encoder.lora_scales": [0, 1, 2, 3],
    }
    assert scale_vectors(tensors, SlotTable(SLOTS)) == {}


def test_a_file_holds_the_scales_of_an_adapters_own_rank() -> None:
    a, b = np.zeros((2, 8), np.int16), np.zeros((8, 2), np.int16)
    a[0], b[:, 0] = 7, 3
    vector = np.array([9, 9, 9, 0.25, 0], np.float32)
    trimmed = trim({"mid.to_q.lora_A": a, "mid.to_q.lora_B": b, "unet.lora_scales": vector}, TABLE)
    assert [*trimmed] == ["mid.to_q.lora_A", "mid.to_q.lora_B", "mid.to_q.lora_scale"]
    assert trimmed["mid.to_q.lora_scale"].tolist() == [0.25]
    assert scale_vectors(trimmed, TABLE)["unet.lora_scales"].tolist() == [0, 0, 0, 0.25, 0]
