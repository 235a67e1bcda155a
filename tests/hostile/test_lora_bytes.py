"""LoRA files whose bytes are wrong: `read_lora` and `quad inspect` both refuse them, for what they are."""

from __future__ import annotations

from pathlib import Path

from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from tests.hostile.lora_bytes import CUT, ENTRIES, FORMATS, HEADERS, LENGTHS
from tests.hostile.refusal import Case, each, quad_refuses, refused


def _refused_by_both(case: Case, base: Base, place: Path) -> None:
    path = case.write(place)
    refused(case.error, case.says, lambda: read_adapter("ink", path, base.unet, text_encoder=base.text_encoder))
    quad_refuses(["inspect", path], case.error, case.says)


@each(CUT)
def test_cut_files(case: Case, base: Base, place: Path) -> None:
    _refused_by_both(case, base, place)


@each(LENGTHS)
def test_headers_that_lie_about_their_length(case: Case, base: Base, place: Path) -> None:
    _refused_by_both(case, base, place)


@each(HEADERS)
def test_headers_that_are_none(case: Case, base: Base, place: Path) -> None:
    _refused_by_both(case, base, place)


@each(ENTRIES)
def test_entries_that_cannot_be(case: Case, base: Base, place: Path) -> None:
    _refused_by_both(case, base, place)


@each(FORMATS)
def test_other_formats_under_this_name(case: Case, base: Base, place: Path) -> None:
    _refused_by_both(case, base, place)
