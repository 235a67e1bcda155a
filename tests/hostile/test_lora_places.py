"""LoRA directories and configs that mislead are refused, and nothing is read past them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quad.core.errors import InputError
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from tests.hostile.lora_bytes import WHOLE
from tests.hostile.lora_places import CONFIGS, METADATA, PLACES
from tests.hostile.raw import of_bytes
from tests.hostile.refusal import Case, each, quad_refuses, quad_survives, refused


@each(PLACES)
def test_places_that_hold_no_lora(case: Case, base: Base, place: Path) -> None:
    path = case.write(place)
    refused(case.error, case.says, lambda: read_adapter("ink", path, base.unet, text_encoder=base.text_encoder))
    quad_refuses(["inspect", path], case.error, "expected")


@each([*CONFIGS, *METADATA])
def test_configs_that_cannot_be(case: Case, base: Base, place: Path) -> None:
    path = case.write(place)
    refused(case.error, case.says, lambda: read_adapter("ink", path, base.unet, text_encoder=base.text_encoder))
    quad_survives(["inspect", path])


def test_a_name_longer_than_the_system_takes(base: Base, place: Path) -> None:
    path = place / ("x" * 5000 + ".safetensors")
    refused(InputError, "expected", lambda: read_adapter("ink", path, base.unet))
    quad_survives(["inspect", path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(base: Base, place: Path) -> None:
    path = of_bytes(WHOLE)(place)
    path.chmod(0)
    refused(InputError, "expected", lambda: read_adapter("ink", path, base.unet))
    quad_refuses(["inspect", path], InputError, "expected")
