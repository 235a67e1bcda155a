"""Margins of encodings: the table's numbers, and what widening does."""

from __future__ import annotations

import pytest

from quad.core.margins import ACTIVATION, HEADROOM, LORA_MID, NO_MARGIN, SLOT_B, Margin, widen


def test_the_table_is_the_one_that_bundles_are_built_with() -> None:
    assert (ACTIVATION.factor, ACTIVATION.half.factor) == (2.0, 1.5)
    assert HEADROOM.factor == 4.0
    assert {bits: margin.factor for bits, margin in LORA_MID.items()} == {16: 8.0, 8: 4.0}
    assert {bits: margin.factor for bits, margin in SLOT_B.items()} == {16: 2.05, 8: 1.0}


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(NO_MARGIN, (-1.0, 3.0)), (Margin(0.5), (-1.5, 4.5)), (Margin(0.5, mirrored=True), (-4.5, 4.5)), (Margin(0.5).half, (-1.25, 3.75))],
)
def test_widening_moves_both_ends(margin: Margin, expected: tuple[float, float]) -> None:
    assert widen((-1.0, 3.0), margin) == expected


def test_half_of_a_mirrored_margin_is_mirrored() -> None:
    assert LORA_MID[16].half == Margin(3.5, mirrored=True)
