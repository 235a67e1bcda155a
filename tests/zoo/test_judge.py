"""The judge reads what renders show; it refuses what it was not made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quad.core.errors import InputError
from quad.zoo import draw, world
from quad.zoo.judge import HEADS, WEIGHTS, Judge, truth_of, truth_of_sticker
from quad.zoo.train.judge import HELD_OUT, IGNORE, accuracy, augment, labels, render_set, to_signal


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_every_head_reads_held_out_renders(judge: Judge) -> None:
    shares = accuracy(judge, *render_set(HELD_OUT + 50_000, 300))
    assert set(shares) == set(HEADS)
    assert min(shares.values()) >= 0.97


def test_blur_and_noise_of_a_decoder_do_not_blind_it(judge: Judge) -> None:
    pictures, target = render_set(HELD_OUT + 60_000, 200)
    shown = augment(to_signal(pictures), np.random.default_rng(0))
    again = ((shown.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)
    shares = accuracy(judge, again, target)
    assert np.mean(list(shares.values())) >= 0.97


def test_attributes_are_the_truths_words(judge: Judge) -> None:
    rng = np.random.default_rng(12)
    scene, face = world.sample_scene(rng), world.sample_portrait(rng)
    toy = scene.toys[0]
    pictures = np.stack([draw.draw_scene(scene), draw.draw_portrait(face, "neon"), draw.draw_sticker(toy)])
    assert judge.attributes(pictures) == [truth_of(scene), truth_of(face, "neon"), truth_of_sticker(toy)]


def test_no_pictures_no_attributes(judge: Judge) -> None:
    assert judge.attributes(np.zeros((0, 64, 64, 3), np.uint8)) == []


def test_labels_skip_heads_that_do_not_apply() -> None:
    face = truth_of(world.Portrait(skin="tan", hair="red", cut="long", expression="sad"))
    by_head = dict(zip(HEADS, labels(face), strict=True))
    assert by_head["time"] == IGNORE
    assert HEADS["hair"][by_head["hair"]] == "red"


def test_features_have_a_row_for_every_picture(judge: Judge) -> None:
    pictures, _ = render_set(HELD_OUT, 3)
    maps, flat = judge.features(pictures)
    assert [level.shape[0] for level in maps] == [3] * len(maps)
    assert flat.shape[0] == 3
    np.testing.assert_allclose(judge.features(pictures[1:2])[1], flat[1:2], atol=1e-4)


def test_another_shape_is_refused(judge: Judge) -> None:
    with pytest.raises(InputError, match=r"expected uint8 pictures \(N, 64, 64, 3\), or whole multiples, found uint8 \(1, 32, 32, 3\)"):
        judge.attributes(np.zeros((1, 32, 32, 3), np.uint8))


def test_weights_are_small_and_missing_ones_are_named(tmp_path: Path) -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"run python -m quad\.zoo\.train\.judge"):
        Judge.load(tmp_path / "none.safetensors")
