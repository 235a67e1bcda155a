"""The FP32 side: batches draw what single runs draw, adapters do something, and the base is itself again after them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quad.core.errors import UsageError
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import Reference, SeedRows
from quad.model import device as devices
from tests.elsewhere import NAME, elsewhere


@pytest.fixture(scope="module")
def reference(model_dir: Path, adapter_files: dict[str, Path]) -> Reference:
    return Reference(model_dir, adapter_files)


@pytest.mark.parametrize("task", ["text-to-image", "transform", "removal", "sketch", "sticker", "portrait"])
def test_a_batch_is_its_single_runs(reference: Reference, task: str) -> None:
    jobs = picture_requests(held_out(task, 3), 7)
    together = reference.pictures(task, jobs)
    alone = np.concatenate([reference.pictures(task, [job]) for job in jobs])
    assert together.shape == (3, 64, 64, 3)
    assert together.dtype == np.uint8
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_rows_of_noise_are_the_runtimes_noise() -> None:
    rows = SeedRows([4, 9]).standard_normal((2, 4, 16, 16))
    for i, seed in enumerate((4, 9)):
        np.testing.assert_array_equal(rows[i : i + 1], np.random.default_rng(seed).standard_normal((1, 4, 16, 16)))


def test_an_adapter_changes_the_output_and_leaves_no_trace(reference: Reference) -> None:
    jobs = picture_requests(held_out("sketch", 2))
    base = reference.pictures("text-to-image", jobs)
    with_adapter = reference.pictures("sketch", jobs)
    assert not np.array_equal(base, with_adapter)
    np.testing.assert_array_equal(reference.pictures("text-to-image", jobs), base)


def test_removal_keeps_what_is_far_from_the_mask(reference: Reference) -> None:
    samples = held_out("removal", 2)
    pictures = reference.pictures("removal", picture_requests(samples))
    for sample, picture in zip(samples, pictures, strict=True):
        assert sample.image is not None
        assert sample.mask is not None
        far = np.ones((64, 64), dtype=bool)
        rows, columns = np.nonzero(sample.mask)
        far[max(0, rows.min() - 4) : rows.max() + 5, max(0, columns.min() - 4) : columns.max() + 5] = False
        np.testing.assert_array_equal(picture[far], sample.image[far])


def test_on_another_device_it_makes_the_same_pictures(
    model_dir: Path, adapter_files: dict[str, Path], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = picture_requests(held_out("transform", 2))
    expected = reference.pictures("transform", jobs)
    monkeypatch.setattr(devices, "accelerators", lambda: (NAME,))
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # whose tensors no other class may wrap
    with elsewhere() as crossings:
        there = Reference(model_dir, adapter_files).on(NAME)
        assert np.abs(there.pictures("transform", jobs).astype(int) - expected).max() <= 1  # attention is in parts there
    assert there.device == NAME
    assert crossings["out"] > 0


def test_an_unknown_task_lists_the_known(reference: Reference) -> None:
    with pytest.raises(UsageError, match=r"expected one of text-to-image, transform.*found dance"):
        reference.pictures("dance", picture_requests(held_out("sketch", 1)))


def test_the_autoencoder_is_the_one_that_was_given(model_dir: Path, tmp_path: Path) -> None:
    own = Reference(model_dir, {})
    assert Reference(model_dir, {}, vae=model_dir / "vae").digest_as(own.digest) == own.digest
    other = shutil.copytree(model_dir / "vae", tmp_path / "vae")
    weights = next(other.glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    assert Reference(model_dir, {}, vae=other).digest_as(own.digest) != own.digest
