"""Pictures and masks that `quad run` refuses, and odd ones that it takes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quad.core.errors import InputError
from quad.runtime.conditioning.mask import read_mask
from quad.runtime.conditioning.picture import open_picture, to_rgb
from tests.hostile.pictures import PICTURES, PNG, png
from tests.hostile.raw import of_bytes
from tests.hostile.refusal import Case, each, quad_refuses


@each(PICTURES)
def test_what_is_no_picture(case: Case, tiny_bundle: Path, place: Path, out: Path) -> None:
    given = case.write(place)
    quad_refuses(["run", tiny_bundle, "--task", "transform", "--image", given, "-o", out / "a.png"], case.error, case.says, out)


@each(PICTURES[::4])
def test_what_is_no_mask(case: Case, tiny_bundle: Path, place: Path, out: Path) -> None:
    mask = case.write(place)
    image = of_bytes(PNG, "sound.png")(place)
    given = ["run", tiny_bundle, "--task", "removal", "--image", image, "--mask", mask, "-o", out / "a.png"]
    quad_refuses(given, case.error, "expected", out)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P"])
def test_empty_masks(mode: str, tiny_bundle: Path, place: Path, out: Path) -> None:
    Image.new(mode, (16, 16)).save(place / "mask.png")
    image = of_bytes(PNG, "sound.png")(place)
    given = ["run", tiny_bundle, "--task", "removal", "--image", image, "--mask", place / "mask.png", "-o", out / "a.png"]
    quad_refuses(given, InputError, "an empty mask", out)


def test_data_beyond_a_picture_s_size_is_not_unpacked() -> None:
    """The limit on memory holds here too: what would be 200 MB is read as the 64 lines that the header tells of."""
    lines = png(64, 64, bytes(200 * 2**20))
    assert open_picture(Image.open(io.BytesIO(lines))).size == (64, 64)


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "GIF"), ("LA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("RGBA", "WEBP"), ("F", "TIFF")]
)
def test_odd_pictures_that_are_taken(mode: str, kind: str) -> None:
    """They are what people have; nothing in them can do harm, even where there are more pictures than the one that is read."""
    held = io.BytesIO()
    Image.new(mode, (9, 5)).save(held, kind, **({"save_all": True, "append_images": [Image.new(mode, (9, 5), 1)]} if kind == "GIF" else {}))
    pixels, _ = to_rgb(open_picture(Image.open(held)))
    assert (pixels.shape, pixels.dtype) == ((5, 9, 3), np.uint8)


def test_strokes_on_a_transparent_layer_are_the_mask() -> None:
    """Laid on white, all of the layer would be."""
    layer = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    layer.putpixel((3, 2), (255, 255, 255, 255))
    inside, _ = read_mask(layer, 8, 8)
    assert np.argwhere(inside).tolist() == [[2, 3]]
