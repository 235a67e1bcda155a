"""Later adapters in the ablation: figures of what is known, what is marked as missed, and pairs of rows that differ in the slots alone."""

from __future__ import annotations

import numpy as np
import pytest

from quad.evaluate.ablation.later import STRENGTHS, figures_of
from quad.evaluate.ablation.later_truth import TrueOutputs
from quad.evaluate.ablation.plan import ROWS, AblationRow
from quad.evaluate.ablation.results import LaterFigures
from quad.evaluate.ablation.tables import later_cell

RNG = np.random.default_rng(0)
ZERO = [RNG.normal(size=(2, 4, 3, 3)) for _ in range(3)]
EFFECT = [0.1 * RNG.normal(size=(2, 4, 3, 3)) for _ in range(3)]
TRUE = TrueOutputs([zero + effect for zero, effect in zip(ZERO, EFFECT, strict=True)], ZERO)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.1])
def test_a_part_of_the_effect_is_its_gain(gain: float) -> None:
    figures = figures_of(TRUE, [zero + gain * effect for zero, effect in zip(ZERO, EFFECT, strict=True)], ZERO)
    assert figures.effect_gain == pytest.approx(gain)
    if gain != 1.0:
        assert figures.effect_sqnr_db == pytest.approx(-20 * np.log10(abs(gain - 1.0)))


def test_an_error_that_the_base_has_too_is_none_of_the_effect() -> None:
    shifted = [zero + 0.01 for zero in ZERO]
    figures = figures_of(TRUE, [zero + effect for zero, effect in zip(shifted, EFFECT, strict=True)], shifted)
    assert figures.effect_gain == pytest.approx(1.0)
    signal = np.mean([np.square(output).mean() for output in TRUE.full])
    assert figures.output_db == pytest.approx(10 * np.log10(signal / 0.01**2))


def test_refused_and_weak_are_marked() -> None:
    assert later_cell(LaterFigures(admitted=False, reason="clipped")).passed is False
    assert later_cell(LaterFigures(admitted=True, output_db=40.0, effect_gain=0.9, effect_sqnr_db=20.0)).passed is False
    assert later_cell(LaterFigures(admitted=True, output_db=40.0, effect_gain=1.01, effect_sqnr_db=30.0)).passed is True


def test_what_an_admission_cuts_off_and_what_it_grants_is_told() -> None:
    figures = LaterFigures(admitted=True, output_db=40.0, effect_gain=1.0, effect_sqnr_db=30.0, lost=0.004, headroom=0.5)
    assert later_cell(figures).text == "1.000, 30.0 / 40.0 dB, 0.4% cut off, to 0.5"


def test_each_row_of_normalised_slots_has_a_searched_one_that_differs_in_nothing_else() -> None:
    named = {row.name: row for row in ROWS}

    def settings(row: AblationRow) -> dict[str, object]:
        return {name: value for name, value in row.build.items() if name not in ("slots", "lora_bits")} | {"bits": row.lora_bits}

    normalised = [row for row in ROWS if row.build.get("slots") == "normalised" and not row.quality]
    assert len(normalised) == 6
    for row in normalised:
        assert settings(row) == settings(named[row.baseline])
        assert row.synthetic == named[row.baseline].synthetic


def test_the_strengths_reach_from_half_to_four_times() -> None:
    assert (min(STRENGTHS), max(STRENGTHS)) == (0.5, 4.0)
