"""A mask of minus infinity becomes finite and still masks; nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.operators.finite_mask import MASKED
from tests.compile.passes.conftest import Sketch, kept

CAUSAL = np.triu(np.full((1, 1, 4, 4), -np.inf, np.float32), 1)


def masked(mask: Any, *, site: bool = False, reader: str = "Softmax") -> ir.Model:
    sketch = Sketch()
    total = sketch.value("Add", [sketch.input("scores", 1, 2, 4, 4), sketch.constant("mask", mask)], 1, 2, 4, 4)
    read = sketch.site(total, "scores.in") if site else total
    return sketch.model(sketch.value(reader, [read], 1, 2, 4, 4))


def mask_of(model: ir.Model) -> Any:
    return model.graph.initializers["mask"].const_value.numpy()


@pytest.mark.parametrize("site", [False, True])
@pytest.mark.parametrize("least", [-np.inf, np.finfo(np.float32).min])
def test_what_is_masked_stays_masked(least: float, site: bool) -> None:
    mask = np.where(CAUSAL < 0, np.float32(least), np.float32(0))
    after, _ = kept(masked(mask, site=site), "finite_mask", tolerance=1e-7)
    np.testing.assert_array_equal(mask_of(after), np.where(CAUSAL < 0, np.float32(MASKED), 0))


def test_what_it_leaves_does_not_reach_16_bits() -> None:
    assert np.exp(MASKED) < 2.0**-86


def test_a_finite_bias_stays() -> None:
    bias = np.linspace(-900.0, 3.0, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(mask_of(kept(masked(bias), "finite_mask")[0]), bias)


def test_only_the_scores_of_a_softmax_are_masked() -> None:
    after = run_passes(masked(CAUSAL, reader="Relu"), ["finite_mask"])
    np.testing.assert_array_equal(mask_of(after), CAUSAL)


def test_a_mask_that_something_else_reads_too_stays() -> None:
    sketch = Sketch()
    mask = sketch.constant("mask", CAUSAL)
    total = sketch.value("Add", [sketch.input("scores", 1, 1, 4, 4), mask], 1, 1, 4, 4)
    soft = sketch.value("Softmax", [total], 1, 1, 4, 4)
    after = run_passes(sketch.model(soft, sketch.value("Exp", [mask], 1, 1, 4, 4)), ["finite_mask"])
    np.testing.assert_array_equal(mask_of(after), CAUSAL)
