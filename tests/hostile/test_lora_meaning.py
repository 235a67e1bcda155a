"""LoRA files that are whole and mean nothing for the model: `read_lora` refuses them, and `quad inspect` never crashes."""

from __future__ import annotations

from pathlib import Path

from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from tests.hostile.lora_meaning import BASES, KEYS, KINDS, NUMBERS, PARTS
from tests.hostile.refusal import Case, each, quad_survives, refused


def _refused(case: Case, base: Base, place: Path) -> None:
    path = case.write(place)
    refused(case.error, case.says, lambda: read_adapter("ink", path, base.unet, text_encoder=base.text_encoder))
    quad_survives(["inspect", path])


@each(NUMBERS)
def test_numbers_and_shapes_that_cannot_be(case: Case, base: Base, place: Path) -> None:
    _refused(case, base, place)


@each(KEYS)
def test_keys_for_nothing_or_twice(case: Case, base: Base, place: Path) -> None:
    _refused(case, base, place)


@each(BASES)
def test_another_base(case: Case, base: Base, place: Path) -> None:
    _refused(case, base, place)


@each(PARTS)
def test_other_kinds_that_are_not_whole(case: Case, base: Base, place: Path) -> None:
    _refused(case, base, place)


@each(KINDS)
def test_kinds_that_quad_has_not(case: Case, base: Base, place: Path) -> None:
    _refused(case, base, place)
