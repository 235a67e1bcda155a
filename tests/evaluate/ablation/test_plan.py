"""The plan is data: names are unique, every row can be built here, and a row brings the one it is compared with."""

from __future__ import annotations

import pytest

from quad.core.errors import UsageError
from quad.evaluate.ablation.plan import BASELINE, GROUPS, ROWS, plan


def test_names_are_unique_and_no_groups() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert not set(names) & set(GROUPS)
    assert {row.group for row in ROWS} <= set(GROUPS)
    assert {row.baseline for row in ROWS} <= set(names)


def test_the_papers_shares_are_there() -> None:
    shares = [row.a8_fraction for row in plan(["precision"])]
    assert shares == [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
    assert {row.lora_bits for row in plan()} == {8, 16}


def test_a_row_brings_what_it_is_compared_with() -> None:
    assert [row.name for row in plan(["without-split-skips"])] == [BASELINE, "mixed-80", "without-split-skips"]
    assert [row.name for row in plan(["lora-8"])] == [BASELINE, "lora-8"]
    assert [row.name for row in plan(["begin-of-text"])] == ["w8a8", "begin-of-text"]
    assert [row.name for row in plan(["slots-normalised-w8a8"])] == ["slots-searched-w8a8", "slots-normalised-w8a8"]


def test_each_row_left_out_a_step_differs_from_its_neighbour_in_that_step_alone() -> None:
    named = {row.name: row for row in ROWS}
    for row in ROWS:
        if row.quality:
            assert len(row.quality) == 1
            assert dict(row.build) == dict(named[row.baseline].build)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"--rows: expected some of precision.*w8a16.*found 'w2a2'"):
        plan(["w2a2"])
