"""Laws of the renderer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad.zoo import draw, world

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=15)


@FEW
@given(SEEDS)
def test_a_seed_is_a_picture(seed: int) -> None:
    first, again = (draw.draw_scene(world.sample_scene(np.random.default_rng(seed))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8


@FEW
@given(SEEDS)
def test_a_mask_covers_all_that_an_object_changes(seed: int) -> None:
    scene = world.sample_scene(np.random.default_rng(seed))
    with_it, without_it = draw.draw_scene(scene), draw.draw_scene(world.without(scene, 0))
    outside = draw.draw_mask(scene.toys[0]) == 0
    np.testing.assert_array_equal(with_it[outside], without_it[outside])


@FEW
@given(SEEDS)
def test_line_drawings_are_ink_on_white_and_know_no_colour(seed: int) -> None:
    scene = world.sample_scene(np.random.default_rng(seed))
    lines = draw.draw_lines(scene)
    assert (lines.min(axis=-1) < 90).any()
    assert (lines[:6] >= 245).all() or any(toy.kind == "balloon" for toy in scene.toys)
    recoloured = world.Scene(
        time="night", ground="sand", toys=tuple(replace(t, colour="red") for t in scene.toys), hill=scene.hill, sun_left=scene.sun_left
    )
    np.testing.assert_array_equal(lines, draw.draw_lines(recoloured))


@FEW
@given(SEEDS)
def test_a_sticker_is_ground_far_from_its_object(seed: int) -> None:
    toy = world.sample_scene(np.random.default_rng(seed)).toys[0]
    sticker = draw.draw_sticker(toy)
    far = draw.draw_mask(toy, grow=0.12) == 0
    assert (sticker[far] == draw.STICKER_GROUND).all()
    assert (sticker.min(axis=-1) >= 245).any()


@FEW
@given(SEEDS)
def test_styles_differ_and_keep_their_own_ground(seed: int) -> None:
    face = world.sample_portrait(np.random.default_rng(seed))
    pictures = {style: draw.draw_portrait(face, style) for style in (None, *world.STYLES)}
    for style, ground in (("cartoon", draw.CARTOON_GROUND), ("neon", draw.NEON_GROUND), ("pastel", draw.PAPER)):
        assert tuple(pictures[style][0, 0]) == ground
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_pictures_come_in_any_size_and_show_the_same(size: int) -> None:
    scene = world.sample_scene(np.random.default_rng(3))
    picture = draw.draw_scene(scene, size)
    assert picture.shape == (size, size, 3)
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), draw.draw_scene(scene, 64).mean(axis=(0, 1)), atol=4)
