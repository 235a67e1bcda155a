"""What a file must hold to be bound, said in one line where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import VerificationError
from quad.core.slots import Slot, SlotTable
from quad.runtime.adapters.buffers import BESIDE_BYTES, check_tensors, largest_bytes, padded_bytes, zero_buffers

SLOTS = SlotTable(
    (
        Slot(path="conv_in", kind="conv", in_features=3, out_features=5, rank=4, dtype="int16", kernel=(3, 3)),
        Slot(path="mid.to_q", kind="linear", in_features=4, out_features=4, rank=4, dtype="int16"),
        Slot(path="mid.to_k", kind="linear", in_features=4, out_features=4, rank=4, dtype="int8"),
        Slot(path="mid.to_v", kind="linear", in_features=4, out_features=4, rank=4, dtype="int8"),
    )
)


def _good() -> dict[str, NDArray[Any]]:
    return {
        "conv_in.lora_A": np.ones((2, 3, 3, 3), np.int16),
        "conv_in.lora_B": np.ones((5, 2, 1, 1), np.int16),
        "mid.to_q.lora_A": np.ones((4, 4), np.int16),
        "mid.to_q.lora_B": np.ones((4, 4), np.int16),
    }


def test_own_ranks_and_missing_slots_are_fine() -> None:
    check_tensors("ink", _good(), SLOTS)
    check_tensors("ink", {}, SLOTS)
    check_tensors("ink", zero_buffers(SLOTS), SLOTS)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("mid.to_z.lora_A", np.ones((4, 4), np.int16), "expected tensors of 4 slots, found mid.to_z.lora_A, which is none"),
        ("mid.to_q.lora_A", None, "slot mid.to_q: expected both A and B, or neither, found mid.to_q.lora_B alone"),
        ("conv_in.lora_B", None, "slot conv_in: expected both A and B, or neither, found conv_in.lora_A alone"),
        ("mid.to_q.lora_A", np.ones((5, 4), np.int16), r"mid.to_q.lora_A: expected a rank from 1 to 4, found shape \(5, 4\)"),
        ("mid.to_q.lora_A", np.ones((0, 4), np.int16), r"expected a rank from 1 to 4, found shape \(0, 4\)"),
        ("mid.to_q.lora_A", np.ones((), np.int16), r"expected a rank from 1 to 4, found shape \(\)"),
        ("mid.to_q.lora_A", np.ones((3, 4), np.int16), r"mid.to_q.lora_B: expected int16 \(4, 3\), found int16 \(4, 4\)"),
        ("mid.to_q.lora_B", np.ones((4, 3), np.int16), r"mid.to_q.lora_B: expected int16 \(4, 4\), found int16 \(4, 3\)"),
        ("mid.to_q.lora_A", np.ones((4, 5), np.int16), r"expected int16 \(4, 4\), found int16 \(4, 5\)"),
        ("mid.to_q.lora_A", np.ones((4, 4, 1, 1), np.int16), r"expected int16 \(4, 4\), found int16 \(4, 4, 1, 1\)"),
        ("mid.to_q.lora_B", np.ones((4, 4), np.uint16), r"expected int16 \(4, 4\), found uint16 \(4, 4\)"),
        ("mid.to_q.lora_A", np.ones((4, 4), np.float32), r"expected int16 \(4, 4\), found float32 \(4, 4\)"),
        ("conv_in.lora_A", np.ones((2, 3, 3), np.int16), r"expected int16 \(2, 3, 3, 3\), found int16 \(2, 3, 3\)"),
        ("conv_in.lora_B", np.ones((5, 2), np.int16), r"expected int16 \(5, 2, 1, 1\), found int16 \(5, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(name: str, tensor: NDArray[Any] | None, says: str) -> None:
    tensors = _good()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(VerificationError, match=rf"^adapter 'ink'.*{says}; pack it again with quad adapt$"):
        check_tensors("ink", tensors, SLOTS)


def test_zeros_are_of_the_slots_and_shared_by_shape_and_type() -> None:
    zeros = zero_buffers(SLOTS)
    assert {name: zero.shape for name, zero in zeros.items()} == SLOTS.input_shapes()
    assert {zeros[slot.a_name].dtype for slot in SLOTS.slots} == {np.dtype(np.int16), np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros.values())
    assert zeros["mid.to_k.lora_A"] is zeros["mid.to_v.lora_B"]
    assert zeros["mid.to_q.lora_A"] is not zeros["mid.to_k.lora_A"]
    shared = {id(zero): zero.nbytes for zero in zeros.values()}
    assert sum(shared.values()) == 2 * (4 * 27 + 5 * 4 + 4 * 4) + 4 * 4
    assert largest_bytes(SLOTS) == sum(zero.nbytes for zero in zeros.values())


def test_an_adapter_takes_its_slots_sizes_whatever_its_rank_and_nothing_for_slots_it_lacks() -> None:
    zeros = zero_buffers(SLOTS)
    own = ["conv_in.lora_A", "conv_in.lora_B"]
    assert padded_bytes([*own, "ghost.lora_A"], zeros) == sum(zeros[name].nbytes + BESIDE_BYTES for name in own)
    assert padded_bytes(zeros, zeros) == largest_bytes(SLOTS) + BESIDE_BYTES * len(zeros)
