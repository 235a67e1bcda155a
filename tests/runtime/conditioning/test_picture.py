"""Any picture in, and back to where it came from."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quad.core.errors import BackendError, InputError
from quad.core.picture_size import PictureSize, square
from quad.runtime.conditioning import picture_file
from quad.runtime.conditioning.picture import fit_centre, fit_whole, open_picture, to_rgb

sides = st.integers(1, 70)


@given(sides, sides, st.sampled_from([(16, 16), (64, 64), (64, 16), (16, 48)]))
def test_whole_fit_goes_and_comes_back(width: int, height: int, size: tuple[int, int]) -> None:
    flat = np.full((height, width, 3), 90, np.uint8)
    fit = fit_whole(width, height, PictureSize(*size))
    fitted = fit.forward(flat)
    assert fitted.shape == (size[1], size[0], 3)
    assert np.abs(fitted.astype(int) - 90).max() <= 1
    back = fit.back(fitted.astype(np.float32))
    assert back.shape == (height, width, 3)
    assert np.abs(back - 90).max() < 2


@given(sides, sides, st.sampled_from([(16, 16), (64, 16), (16, 48)]))
def test_centre_fit_keeps_shapes(width: int, height: int, size: tuple[int, int]) -> None:
    fit = fit_centre(width, height, PictureSize(*size))
    left, top, right, bottom = fit.source
    assert fit.forward(np.zeros((height, width, 3), np.uint8)).shape == (size[1], size[0], 3)
    assert right - left == width or bottom - top == height  # as large as there is
    assert (left, top) == ((width - right + left) // 2, (height - bottom + top) // 2)
    # Of the graph's proportions, but for the rounding to whole pixels.
    assert abs((right - left) * size[1] - (bottom - top) * size[0]) <= max(size)


@given(sides, sides)
def test_masks_never_vanish(width: int, height: int) -> None:
    mask = np.zeros((height, width), np.bool_)
    mask[height // 2, width // 3] = True
    assert fit_whole(width, height, square(16)).forward_mask(mask).any()


def test_own_size_is_untouched(picture: np.ndarray) -> None:
    for fit in (fit_whole(16, 16, square(16)), fit_centre(16, 16, square(16))):
        assert fit.is_identity
        np.testing.assert_array_equal(fit.forward(picture), picture)
        np.testing.assert_array_equal(fit.back(picture.astype(np.float32)), picture)


def test_centre_fit_takes_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (fit_centre(30, 10, square(16)).forward(wide) == 200).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((5, 7), 255, np.uint8))
    picture = Image.fromarray(np.full((5, 7), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    rgb, _ = to_rgb(picture)
    assert rgb.shape == (5, 7, 3)
    assert rgb.dtype == np.uint8
    assert (rgb == 255).all()


def test_transparent_parts_are_white_and_said() -> None:
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    rgb, notes = to_rgb(clear)
    assert (rgb == 255).all()
    assert "laid on white" in notes[0]


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.bool_), np.zeros((4, 4, 1)), np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 4))])
def test_arrays(array: np.ndarray) -> None:
    assert to_rgb(open_picture(array))[0].shape == (4, 4, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 4, 4, 4)), np.zeros((3, 4, 7)), np.zeros((0, 4)), np.full((4, 4), 7.0), np.zeros((4, 4), int), 7]
)
def test_no_picture(bad: Any) -> None:
    with pytest.raises(InputError, match="image"):
        open_picture(bad)


def test_files(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(to_rgb(open_picture(tmp_path / "a.png"))[0], picture)
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    for name, words in {"text.png": "found something else", "half.png": "found a damaged one", "none.png": "check the path"}.items():
        with pytest.raises(InputError, match=words) as caught:
            open_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["L", "LA", "P", "RGB", "RGBA", "1", "I;16", "I", "F", "CMYK"]),
    st.integers(1, 300),
)
def test_bands_change_nothing(width: int, height: int, mode: str, band_pixels: int) -> None:
    draw = np.random.default_rng(width * height)
    match mode:
        case "I;16":
            picture = Image.fromarray(draw.integers(0, 65536, (height, width)).astype(np.uint16))
        case "I" | "F":
            picture = Image.fromarray(draw.integers(0, 70000, (height, width)).astype(np.int32 if mode == "I" else np.float32))
        case _:
            picture = Image.fromarray(draw.integers(0, 256, (height, width, 4)).astype(np.uint8)).convert(mode)
    expected = to_rgb(picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_file, "_BAND_PIXELS", band_pixels)
        actual = to_rgb(picture)
        eight_bits = None if mode in ("I", "F") else to_rgb(picture_file.to_eight_bits(picture))
    for pixels, notes in filter(None, (actual, eight_bits)):
        np.testing.assert_array_equal(pixels, expected[0])
        assert notes == expected[1]


def test_no_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")

    def lacking(_picture: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(picture_file, "upright", lacking)
    with pytest.raises(BackendError, match="expected enough memory, found too little"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_more_pixels_than_the_library_opens_are_too_many_not_damage(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = BytesIO()
    Image.new("RGB", (40, 40)).save(data, format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="at most 64 pixels, found many more"):
        picture_file.decode_picture(data.getvalue(), "image", 64)
