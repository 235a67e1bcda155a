"""Choice of a device, and batches that fit into its memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from quad.core.device import ACCELERATORS, batch_that_fits, choose_device, in_fitting_batches
from quad.core.errors import UsageError


def test_auto_takes_an_accelerator_and_else_the_cpu() -> None:
    assert choose_device("auto", ()) == "cpu"
    assert choose_device("auto", ("mps",)) == "mps"
    assert choose_device("auto", ACCELERATORS) == "cuda"
    assert choose_device("cpu", ACCELERATORS) == "cpu"
    assert choose_device("mps", ACCELERATORS) == "mps"


@pytest.mark.parametrize(("asked", "message"), [("cuda", "--device cuda: expected a device that torch reaches here: cpu"),
                                                ("tpu", "--device: expected one of auto, cpu, cuda, mps")])  # fmt: skip
def test_what_is_not_there_is_one_line(asked: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        choose_device(asked, ())
    assert "\n" not in str(error.value)


def test_half_of_the_free_memory_is_filled() -> None:
    assert batch_that_fits(1000, 100, 32) == 5
    assert batch_that_fits(1000, 10_000, 32) == 1
    assert batch_that_fits(10**12, 1, 32) == 32
    assert batch_that_fits(0, 0, 32) == 1


@pytest.mark.parametrize("fits", [1, 2, 3, 8])
def test_every_item_is_computed_once_and_in_order(fits: int) -> None:
    tried: list[int] = []

    def compute(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > fits:
            raise MemoryError
        return [item * item for item in items]

    assert list(in_fitting_batches(compute, range(9), 8, MemoryError)) == [item * item for item in range(9)]
    assert tried == sorted(tried, reverse=True)  # halved for good


def test_one_item_that_does_not_fit_is_the_callers_trouble() -> None:
    def compute(items: Sequence[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(in_fitting_batches(compute, [1], 1, MemoryError))
