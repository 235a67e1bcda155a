"""The float model called as a bundle is: the same picture as the reference makes, and one line for what it does not read."""

from __future__ import annotations

from argparse import Namespace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.evaluate.full_precision import FullPrecision, _opened, answer
from quad.runtime.adapter_switch import AdapterSwitch
from quad.runtime.bundle import open_bundle
from quad.runtime.provenance.png import plain_png
from quad.serve.api import ErrorBody, NewRequest
from quad.zoo.reference import MODELS, reference_dir
from tests.runtime.conftest import bundle_copy as bundle_copy
from tests.runtime.conftest import write_manifest


@pytest.fixture
def opened(bundle_copy: Path, model_dir: Path, adapter_files: dict[str, Path]) -> FullPrecision:
    """Of a bundle that says the model's size; no graph of it runs here."""
    reference = Reference(model_dir, adapter_files)
    write_manifest(bundle_copy, size=reference.picture_size.width)
    bundle = open_bundle(bundle_copy)
    return FullPrecision(bundle=bundle, reference=reference, switch=AdapterSwitch(bundle, {}))


@pytest.mark.parametrize(("task", "adapters"), [("text-to-image", None), ("sketch", None), ("sketch", {}), ("removal", {"transform": 1.0})])
def test_its_picture_is_the_references(opened: FullPrecision, task: str, adapters: dict[str, float] | None) -> None:
    rng = np.random.default_rng(0)
    side = opened.reference.picture_size.width
    image, mask = rng.integers(0, 256, (side, side, 3)).astype(np.uint8), np.zeros((side, side), np.uint8)
    mask[2:9, 3:8] = 255
    spec = opened.bundle.manifest.tasks[task]
    files = [plain_png(Image.fromarray(pixels)) for pixels in (image, mask)] if task != "text-to-image" else [None, None]
    body = NewRequest(prompt="red", task=task, adapters=adapters, seed=3, image=files[0], mask_image=files[1])
    made = opened.picture(body)
    request = PictureRequest(prompt="red", seed=3, image=image, mask=mask)
    expected = opened.reference.pictures(task, [request], spec, None if adapters is None else list(adapters))[0]
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(made.image))), expected)
    assert made.sampler == f"{spec.sampler.kind}:{spec.sampler.steps}"
    assert set(made.adapters) == ({spec.adapter} - {None} if adapters is None else set(adapters))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"adapters": {"sketch": 0.5}}, "weight 1"),
        ({"negative_prompt": "night"}, "no negative prompt"),
        ({"adapters": {"none": 1.0}}, "none"),
        ({"task": "nothing"}, "task"),
        ({"width": 1, "height": 1}, "width"),
        ({"original_size": (32, 32)}, "the picture's own sizes"),
        ({"guidance_interval": (0.2, 0.8)}, "guidance all the way"),
        ({"reuse": 2}, "every step computed, found reuse 2"),
        ({"tiny_decoder": True}, "the model's own decoder"),
        ({"mask_grow": 5}, "a mask grown by 2, found 5"),
    ],
)
def test_what_it_does_not_read_is_one_line_and_ends_nothing(opened: FullPrecision, words: dict[str, Any], line: str) -> None:
    answered = answer(opened, msgspec.json.encode(NewRequest(prompt="red", **words)))
    assert answered.picture is None
    assert answered.error is not None
    assert line in answered.error.error
    assert answer(opened, msgspec.json.encode(NewRequest(prompt="red"))).picture is not None


@pytest.mark.parametrize("model", MODELS)
def test_each_shipped_model_has_a_name(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(FullPrecision, "open", lambda _root, directory, *_words: asked.append(directory))
    _opened(Namespace(bundle=tmp_path, model=model, adapter=[], vae=None))
    assert asked == [reference_dir(model)]


def test_a_model_that_cannot_be_opened_is_told_by_each_picture() -> None:
    error = ErrorBody("model: expected one, found none; give it", "InputError")
    assert answer(error, b"{}").error == error
