"""Adapters that do not fit or cannot be trusted: the pipeline refuses them and stays as it was, and so does `quad inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from quad.runtime import QuadPipeline
from tests.hostile.packs import BYTES, DAMAGED, FORGED, PLACES, TENSORS, WHOLE
from tests.hostile.raw import of_bytes
from tests.hostile.refusal import Case, each, quad_survives, refused


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, engine="ort")


def _refused(case: Case, pipe: QuadPipeline, place: Path) -> None:
    before = (pipe.adapters, pipe.tasks, pipe.get_active_adapters())
    path = case.write(place)
    refused(case.error, case.says, lambda: pipe.load_lora_weights(path))
    assert (pipe.adapters, pipe.tasks, pipe.get_active_adapters()) == before
    quad_survives(["inspect", path])


@each(BYTES)
def test_files_that_are_no_packs(case: Case, pipe: QuadPipeline, place: Path) -> None:
    _refused(case, pipe, place)


@each(DAMAGED)
def test_damaged_packs(case: Case, pipe: QuadPipeline, place: Path) -> None:
    _refused(case, pipe, place)


@each(FORGED)
def test_manifests_that_cannot_be(case: Case, pipe: QuadPipeline, place: Path) -> None:
    _refused(case, pipe, place)


@each(TENSORS)
def test_tensors_of_other_slots(case: Case, pipe: QuadPipeline, place: Path) -> None:
    _refused(case, pipe, place)


@each(PLACES)
def test_places_that_hold_no_adapter(case: Case, pipe: QuadPipeline, place: Path) -> None:
    _refused(case, pipe, place)


def test_what_they_were_made_from_is_admitted(pipe: QuadPipeline, place: Path) -> None:
    assert pipe.load_lora_weights(of_bytes(WHOLE, "ink.qpack")(place), "whole") == "whole"
    pipe.unload("whole")
