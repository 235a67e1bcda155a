"""Sizes as people write them."""

from __future__ import annotations

import pytest

from quad.core.byte_size import parse_bytes
from quad.core.errors import UsageError


@pytest.mark.parametrize(("text", "size"), [("512", 512), (512, 512), ("1.5kB", 1500), ("500MB", 500_000_000), ("2 GB", 2_000_000_000)])
def test_a_number_and_a_unit(text: str | int, size: int) -> None:
    assert parse_bytes("--weight-budget", text) == size


@pytest.mark.parametrize("text", ["", "much", "5 litres", "-3MB", "1e6"])
def test_what_is_no_size_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--weight-budget: expected a size"):
        parse_bytes("--weight-budget", text)
