"""The laws that the demo reports, on the tiny model."""

from __future__ import annotations

from pathlib import Path

from quad.evaluate.figures import laws
from quad.evaluate.figures.reference import Reference


def test_the_slotted_network_is_diffusers_with_peft(model_dir: Path, adapter_files: dict[str, Path]) -> None:
    errors = laws.slotted_error(model_dir, adapter_files, Reference(model_dir, adapter_files))
    assert set(errors) == set(adapter_files)
    assert max(errors.values()) <= 1e-4


def test_the_runtime_imports_without_a_training_framework() -> None:
    measured = laws.runtime_import()
    assert measured.heavy == []
    assert measured.seconds < 10
