"""What is cut from an adapter comes back bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quad.core.memory import memory_block
from quad.core.padding import own_shapes, trim
from quad.core.slots import Slot, SlotTable
from quad.runtime.adapters import buffers
from quad.runtime.adapters.buffers import pad, zero_buffers

SLOTS = SlotTable(
    (
        Slot(path="conv_in", kind="conv", in_features=3, out_features=5, rank=6, dtype="int16", kernel=(3, 3)),
        Slot(path="mid.to_q", kind="linear", in_features=4, out_features=2, rank=6, dtype="int16"),
        Slot(
            path="text_encoder.layers.0.q_proj",
            kind="linear",
            in_features=4,
            out_features=4,
            rank=2,
            dtype="int16",
            component="text_encoder",
        ),
    )
)
ZEROS = zero_buffers(SLOTS)


def padded(ranks: list[int], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Nonzero integers in the first channels of every slot, as many as its entry of `ranks`."""
    rng = np.random.default_rng(seed)
    tensors = {name: zero.copy() for name, zero in ZEROS.items()}
    for slot, rank in zip(SLOTS.slots, ranks, strict=True):
        tensors[slot.a_name][:rank] = rng.integers(1, 100, tensors[slot.a_name][:rank].shape)
        tensors[slot.b_name][:, :rank] = rng.integers(1, 100, tensors[slot.b_name][:, :rank].shape)
    return tensors


@given(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2)), st.integers(0, 99))
def test_padding_brings_back_what_was_cut_and_a_file_holds_own_ranks_alone(ranks: tuple[int, ...], seed: int) -> None:
    whole = padded(list(ranks), seed)
    cut = trim(whole, SLOTS)
    back = pad(cut, ZEROS)
    for slot, rank in zip(SLOTS.slots, ranks, strict=True):
        assert (slot.a_name in cut, slot.b_name in cut) == (rank > 0, rank > 0)
        if rank:
            assert (cut[slot.a_name].shape, cut[slot.b_name].shape) == own_shapes(slot, rank)
        for name in (slot.a_name, slot.b_name):
            np.testing.assert_array_equal(back[name], whole[name], strict=True)
    assert list(back) == list(SLOTS.input_shapes())


@pytest.mark.parametrize("rank", [1, 5])
def test_large_pages_are_for_blocks_that_are_mostly_numbers(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small pages those that stay zero take no memory."""
    asked = list[bool]()

    def block(size: int, *, large_pages: bool) -> Any:
        asked.append(large_pages)
        return memory_block(size, large_pages=large_pages)

    monkeypatch.setattr(buffers, "memory_block", block)
    whole = padded([rank, rank, 1])
    back = pad(trim(whole, SLOTS), ZEROS)
    assert asked == [rank > 3]
    for name, array in whole.items():
        np.testing.assert_array_equal(back[name], array)


def test_cutting_twice_is_cutting_once_and_needs_no_padding_before() -> None:
    cut = trim(padded([2, 0, 1]), SLOTS)
    again = trim(cut, SLOTS)
    assert again.keys() == cut.keys()
    for name, array in cut.items():
        np.testing.assert_array_equal(again[name], array, strict=True)


def test_channels_in_the_middle_and_half_channels_stay() -> None:
    whole = padded([6, 6, 2])
    a, b = whole["conv_in.lora_A"], whole["conv_in.lora_B"]
    a[1] = b[:, 1] = 0  # nothing at all, but not at the end
    a[3:], b[:, 4:] = 0, 0  # channel 3 has a B still
    cut = trim(whole, SLOTS)
    assert (len(cut["conv_in.lora_A"]), cut["conv_in.lora_B"].shape[1]) == (4, 4)
    np.testing.assert_array_equal(pad(cut, ZEROS)["conv_in.lora_B"], b)


def test_whole_tensors_are_not_copied_and_missing_ones_are_the_shared_zeros() -> None:
    cut = trim(padded([6, 6, 0]), SLOTS)
    back = pad(cut, ZEROS)
    assert all(back[name] is array for name, array in cut.items())
    for name in SLOTS.of("text_encoder").input_shapes():
        assert back[name] is ZEROS[name]


def test_one_smaller_tensor_and_nothing_is_a_view_of_what_was_given() -> None:
    whole, cut = padded([6, 3, 0]), trim(padded([6, 3, 0]), SLOTS)
    back = pad(cut, ZEROS)
    for array in cut.values():
        array[...] = -1
    for name in cut:
        np.testing.assert_array_equal(back[name], whole[name], strict=True)


def test_a_tensor_that_begins_between_two_numbers_is_moved() -> None:
    whole = padded([6, 6, 2])
    memory = bytearray(1 + whole["mid.to_q.lora_A"].nbytes)
    odd = np.ndarray(whole["mid.to_q.lora_A"].shape, np.int16, memory, 1)
    odd[...] = whole["mid.to_q.lora_A"]
    back = pad(whole | {"mid.to_q.lora_A": odd}, ZEROS)
    for name, array in whole.items():
        assert back[name].flags.aligned
        np.testing.assert_array_equal(back[name], array, strict=True)
