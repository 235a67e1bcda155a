"""What is on offer: releases in order."""

from __future__ import annotations

import pytest

from quad.delivery.offer import release_key


@pytest.mark.parametrize(("low", "high"), [("0.1", "0.1.1"), ("0.9", "0.10"), ("0.1.0rc1", "0.2"), ("1.0", "1.0.0.1")])
def test_releases_compare_as_numbers(low: str, high: str) -> None:
    assert release_key(low) < release_key(high)
    assert release_key("1.0") == release_key("1")
