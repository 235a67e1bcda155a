"""Conditions of the tasks: masks, holes, and pasting back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.core.errors import InputError, UsageError
from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.picture_size import PictureSize, square
from quad.runtime.conditioning.condition import Condition, Pictures, make_condition, to_model
from quad.runtime.conditioning.mask import feather, grow_steps, pool_mask, read_mask, sample_mask
from quad.runtime.stages import to_picture

REMOVAL = TaskSpec(adapter="removal", sampler=SamplerSpec(kind="ddim", steps=2), condition="masked-image", mask="input")
EDIT = TaskSpec(adapter="transform", sampler=SamplerSpec(kind="ddim", steps=2), condition="image", mask="zeros")
SKETCH = TaskSpec(adapter="sketch", sampler=SamplerSpec(kind="ddim", steps=2), condition="image", mask="ones")
TEXT = TaskSpec(adapter=None, sampler=SamplerSpec(kind="euler", steps=2), condition="none", mask="ones")

BLEND = TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=2), condition="none", mask="input", blend=True)
CUT = TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=2), condition="cut-image", mask="input")
AGAIN = TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=2), condition="none", mask="ones", strength=0.8)


def _removal(image: np.ndarray, mask: np.ndarray, grow: int = 2) -> Condition:
    return make_condition("removal", REMOVAL, Pictures(image, mask, grow), square(16), 4)


def test_kinds_of_condition(picture: np.ndarray, mask: np.ndarray) -> None:
    text = make_condition("text-to-image", TEXT, Pictures(picture, mask), square(16), 4)
    assert text.image is None
    assert text.mask.all()
    assert len(text.notes) == 2
    edit = make_condition("transform", EDIT, Pictures(picture), square(16), 4)
    assert not edit.mask.any()
    np.testing.assert_array_equal(edit.image, to_model(picture))
    assert make_condition("sketch", SKETCH, Pictures(picture), square(16), 4).mask.all()


def test_hole_is_grey_and_the_rest_is_kept(picture: np.ndarray, mask: np.ndarray) -> None:
    condition = _removal(picture, mask, grow=0)
    assert condition.image is not None
    seen = np.rint((condition.image[0].transpose(1, 2, 0) + 1) * 127.5)
    assert (seen[mask > 0] == 127).all()
    np.testing.assert_array_equal(seen[mask == 0], picture[mask == 0])
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1
    np.testing.assert_array_equal(condition.mask[0, 0], expected)


def test_a_cut_picture_has_zeros_in_the_hole_and_the_mask_of_every_fourth_pixel(picture: np.ndarray, mask: np.ndarray) -> None:
    condition = make_condition("inpainting", CUT, Pictures(picture, mask, 0), square(16), 4)
    np.testing.assert_array_equal(condition.image, np.where(mask > 0, np.float32(0), to_model(picture)))
    np.testing.assert_array_equal(condition.mask, (mask[::4, ::4] > 0)[None, None])
    assert condition.picture is None
    assert condition.paste is not None


def test_a_model_that_cuts_sees_zeros_where_all_is_made_anew(picture: np.ndarray) -> None:
    everything = msgspec.structs.replace(CUT, mask="ones")
    text = make_condition("text-to-image", everything, Pictures(), square(16), 4)
    assert text.image is not None
    assert not text.image.any()
    assert text.mask.all()
    again = make_condition("transform", msgspec.structs.replace(everything, strength=0.8), Pictures(picture), square(16), 4)
    assert again.image is not None
    assert not again.image.any()
    np.testing.assert_array_equal(again.picture, to_model(picture))


def test_the_picture_itself_goes_where_the_walk_needs_it(picture: np.ndarray, mask: np.ndarray) -> None:
    again = make_condition("transform", AGAIN, Pictures(picture), square(16), 4)
    blended = make_condition("removal", BLEND, Pictures(picture, mask, 0), square(16), 4)
    for condition in (again, blended):
        assert condition.image is None
        np.testing.assert_array_equal(condition.picture, to_model(picture))
    assert again.mask.all()
    np.testing.assert_array_equal(blended.mask, sample_mask(mask > 0, 4))
    assert make_condition("removal", REMOVAL, Pictures(picture, mask), square(16), 4).picture is None
    with pytest.raises(UsageError, match="task transform: expected a picture"):
        make_condition("transform", AGAIN, Pictures(), square(16), 4)
    with pytest.raises(UsageError, match="task removal: expected a mask"):
        make_condition("removal", BLEND, Pictures(picture), square(16), 4)


def test_nothing_of_the_object_reaches_the_condition(picture: np.ndarray, mask: np.ndarray) -> None:
    other = np.where(mask[..., None] > 0, 255 - picture, picture)
    np.testing.assert_array_equal(_removal(picture, mask).image, _removal(other, mask).image)


def test_outside_the_grown_mask_the_picture_is_untouched(picture: np.ndarray, mask: np.ndarray) -> None:
    result = np.asarray(to_picture(np.ones((1, 3, 16, 16), np.float32), _removal(picture, mask, grow=2).paste))
    grown = grow_steps(mask > 0, 2)[-1]
    assert (result[mask > 0] == 255).all()
    np.testing.assert_array_equal(result[~grown], picture[~grown])


def test_result_has_the_original_size() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (40, 100, 3)).astype(np.uint8)
    mask = np.zeros((40, 100), np.bool_)
    mask[10:20, 50:70] = True
    condition = _removal(wide, mask)
    result = np.asarray(to_picture(np.ones((1, 3, 16, 16), np.float32), condition.paste))
    assert result.shape == wide.shape
    assert (result[mask] == 255).all()
    np.testing.assert_array_equal(result[:, :20], wide[:, :20])
    assert any("pasted back into 100x40" in note for note in condition.notes)


def test_a_condition_has_the_graphs_width_and_height(picture: np.ndarray, mask: np.ndarray) -> None:
    wide = PictureSize(32, 16)
    edit = make_condition("transform", EDIT, Pictures(picture), wide, 4)
    assert edit.image is not None
    assert (edit.image.shape, edit.mask.shape) == ((1, 3, 16, 32), (1, 1, 4, 8))
    assert edit.notes == ("image: its centre, resized from 16x16 to 32x16",)
    removal = make_condition("removal", REMOVAL, Pictures(picture, mask, 0), wide, 4)
    expected = np.zeros((4, 8))
    expected[1:3, 3:5] = 1  # the whole picture lies in the middle
    np.testing.assert_array_equal(removal.mask[0, 0], expected)
    assert removal.notes == ("image: worked on at 32x16, pasted back into 16x16",)
    result = np.asarray(to_picture(np.ones((1, 3, 16, 32), np.float32), removal.paste))
    np.testing.assert_array_equal(result[mask == 0], picture[mask == 0])
    assert (result[mask > 0] == 255).all()


def test_mask_of_another_size_is_resized_with_a_note(picture: np.ndarray, mask: np.ndarray) -> None:
    large = np.kron(mask, np.ones((3, 3), np.uint8))
    condition = _removal(picture, large)
    assert condition.notes == ("mask: resized from 48x48 to the picture's 16x16",)
    np.testing.assert_array_equal(condition.mask, _removal(picture, mask).mask)


def test_thin_masks_survive_resizing() -> None:
    thin = np.zeros((160, 160), np.uint8)
    thin[80, 40:90] = 255
    inside, _ = read_mask(thin, 16, 16)
    assert inside.any()


def test_empty_mask_and_missing_inputs(picture: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="an empty mask; paint over the object"):
        _removal(picture, np.zeros_like(mask))
    with pytest.raises(UsageError, match="task removal: expected a mask"):
        make_condition("removal", REMOVAL, Pictures(picture), square(16), 4)
    with pytest.raises(UsageError, match="task sketch: expected a picture"):
        make_condition("sketch", SKETCH, Pictures(), square(16), 4)
    with pytest.raises(UsageError, match="mask_grow"):
        _removal(picture, mask, grow=-1)


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 4))
def test_growing_is_a_square_and_feather_falls(row: int, column: int, grow: int) -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[row, column] = True
    steps = grow_steps(mask, grow)
    rows, columns = np.indices((16, 16))
    distance = np.maximum(abs(rows - row), abs(columns - column))
    np.testing.assert_array_equal(steps[-1], distance <= grow)
    weight = feather(steps)
    assert weight[row, column] == 1
    np.testing.assert_allclose(weight, np.clip(1 - distance / max(grow, 1), 0, 1), atol=1e-6)
    assert (pool_mask(steps[-1], 4)[0, 0].repeat(4, 0).repeat(4, 1) >= steps[-1]).all()
