"""Orders of axes: what a tensor holds is what NumPy says, whatever is reshaped or turned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quad.compile.litert.layout import laid_out, plain, reshaped, same_numbers, turned

VALUE = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (3, 1, 0, 2)])
def test_a_transpose_moves_nothing(order: tuple[int, ...], perm: tuple[int, ...]) -> None:
    memory = VALUE.transpose(order)
    assert memory.shape == laid_out(VALUE.shape, order)
    after = VALUE.transpose(perm)
    assert (after.transpose(turned(order, perm)) == memory).all()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20), (2, 3, 2, 2, 5), (2, 12, 5), (1, 2, 3, 1, 4, 5), (120,)])
def test_a_reshape_keeps_memory_or_says_that_it_cannot(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    memory, after = VALUE.transpose(order), VALUE.reshape(shape)
    found = reshaped(VALUE.shape, order, shape)
    if found is None:
        assert order != plain(4)
    else:
        assert (after.transpose(found).ravel() == memory.ravel()).all()
        assert sorted(found) == list(range(len(shape)))


def test_axes_of_length_one_lie_anywhere() -> None:
    assert same_numbers((1, 3, 1, 5), (0, 1, 2, 3), (2, 1, 0, 3))
    assert not same_numbers((1, 3, 1, 5), (0, 1, 2, 3), (0, 3, 2, 1))
    assert reshaped((1, 3, 1, 5), (0, 2, 3, 1), (1, 3, 5)) == (0, 2, 1)
