"""Model directories that cannot be: `quad build` refuses them with one line, and leaves nothing, hidden or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quad.model.base.open import Base, open_model
from quad.model.base.text.tokenizer_files import read_tokenizer
from quad.zoo import calibration
from tests.hostile.model_configs import ABSURD, MISSING, OTHERS, TEXTS
from tests.hostile.model_parts import CHANNELS, LINKS, SCHEDULERS, TOKENIZERS, WEIGHTS
from tests.hostile.refusal import Case, each, quad_refuses, refused


@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calibration would draw before the model is opened, small."""
    monkeypatch.setattr(calibration, "PICTURE_PX", 16)


@pytest.fixture
def copy(model_dir: Path, place: Path) -> Path:
    """A model directory for a case to break."""
    return Path(shutil.copytree(model_dir, place / "model"))


def _refused(case: Case, copy: Path, out: Path) -> None:
    quad_refuses(["build", case.write(copy), "-o", out / "phone"], case.error, case.says, out)


@each(MISSING)
def test_parts_that_are_not_there(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(TEXTS)
def test_configs_that_are_none(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(ABSURD)
def test_configs_of_absurd_numbers(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each([*OTHERS, *CHANNELS])
def test_other_families(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(WEIGHTS)
def test_weights_that_cannot_be(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(LINKS)
def test_links_out_of_the_directory(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(SCHEDULERS)
def test_schedulers_that_cannot_be(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(TOKENIZERS[:3])
def test_a_build_with_a_broken_tokenizer(case: Case, copy: Path, out: Path) -> None:
    _refused(case, copy, out)


@each(TOKENIZERS[3:])
def test_tokenizers_that_cannot_be(case: Case, copy: Path, base: Base) -> None:
    """Without the rest of the model, which is read before them."""
    folder = case.write(copy) / "tokenizer"
    refused(case.error, case.says, lambda: read_tokenizer(folder, base.text_encoder.config))


def test_a_hub_s_cache_is_made_of_links_and_opens(copy: Path, place: Path, model_dir: Path) -> None:
    """What is linked out of a snapshot lies among the cache's own blobs."""
    blobs, snapshot = place / "hub" / "blobs", place / "hub" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in copy.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(blobs / f"{number}"))
    assert open_model(snapshot).digest == open_model(model_dir).digest
