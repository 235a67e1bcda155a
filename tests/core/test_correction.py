"""The correction in the slots' last rank channels: bytes as whole steps, zeros before them."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.correction import correction_shapes, place_correction, steps_of_byte
from quad.core.slots import NORMALISED, Slot, SlotDtype, SlotTable


def _table(dtype: SlotDtype) -> SlotTable:
    both = Slot(path="both", kind="linear", in_features=4, out_features=3, rank=5, dtype=dtype, correction=2)
    alone = Slot(path="alone", kind="conv", in_features=2, out_features=3, rank=1, kernel=(3, 3), dtype=dtype, correction=1)
    plain = Slot(path="plain", kind="linear", in_features=4, out_features=4, rank=2, dtype=dtype)
    return SlotTable((both, alone, plain), NORMALISED)


def test_slots_tell_adapters_channels_from_those_of_the_correction() -> None:
    table = _table("int16")
    assert [slot.adapter_rank for slot in table.slots] == [3, 0, 2]
    assert [slot.path for slot in table.of_adapters.slots] == ["both", "plain"]
    assert table.corrected
    assert not table.with_slots(table.slots[2:]).corrected


@pytest.mark.parametrize("dtype", ["int16", "int8"])
def test_bytes_stand_behind_zeros_as_whole_steps(dtype: SlotDtype) -> None:
    table, draw = _table(dtype), np.random.default_rng(0)
    tensors = {
        name: draw.integers(-127, 128, shape).astype(np.int8) if kind == "int8" else draw.random(shape).astype(np.float32)
        for name, (kind, shape) in correction_shapes(table).items()
    }
    placed = place_correction(tensors, table)
    a, b, scales = placed["both.lora_A"], placed["both.lora_B"], placed["unet.lora_scales"]
    assert (a.shape, a.dtype) == ((5, 4), np.dtype(dtype))
    np.testing.assert_array_equal(a[:3], 0)
    np.testing.assert_array_equal(b[:, :3], 0)
    np.testing.assert_array_equal(a[3:] // steps_of_byte(table.slots[0]), tensors["both.lora_A"])
    np.testing.assert_array_equal(placed["alone.lora_A"] // steps_of_byte(table.slots[1]), tensors["alone.lora_A"])
    np.testing.assert_array_equal(scales, [0, 0, 0, *tensors["both.lora_scale"], *tensors["alone.lora_scale"], 0, 0])
    assert "plain.lora_A" not in placed


def test_without_tensors_nothing_is_placed() -> None:
    assert place_correction({}, _table("int16")) == {}
