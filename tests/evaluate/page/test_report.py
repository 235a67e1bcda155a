"""The page: self-contained, escaped, and honest about what was missed."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import numpy as np
from PIL import Image

from quad.evaluate.page.report import DIFFERENCE_GAIN, Chapter, Report, Strip, difference, hole_shown, png_uri, render
from quad.evaluate.page.table import Cell, Row, Table, plain

BLACK = np.zeros((8, 8, 3), np.uint8)


def _page() -> str:
    rows = (Row(name="first", cells=(Cell("2", True), Cell("0.5", False)), bar="≥ 1"), Row(name="second", cells=plain("3", "")))
    table = Table(title="table", lead="why", columns=("FP32", "bundle"), rows=rows)
    strips = [Strip(prompt="a <red> house", fp=BLACK, quantized=BLACK + np.uint8(9), facts="33 dB", truth=BLACK) for _ in range(6)]
    return render(Report(title="t & t", lead="lead", facts=[("name", "value")], tables=[table], chapters=[Chapter("sketch", "l", strips)]))


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = _page()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png|#)", page)
    assert "<script" not in page
    assert "@import" not in page


def test_words_are_escaped() -> None:
    page = _page()
    assert "a &lt;red&gt; house" in page
    assert "t &amp; t" in page


def test_reached_and_missed_are_both_said_and_nothing_where_there_is_no_bar() -> None:
    page = _page()
    assert page.count('badge good">reached') == 1
    assert page.count('badge bad">missed') == 1


def test_all_strips_are_there_the_later_ones_folded() -> None:
    page = _page()
    assert page.count("a &lt;red&gt; house") == 6
    assert "2 more" in page


def test_pictures_survive_the_page() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = base64.b64decode(png_uri(picture).partition(",")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(data))), picture)


def test_difference_is_amplified_symmetric_and_clipped() -> None:
    other = BLACK.copy()
    other[0, 0] = (1, 10, 200)
    assert difference(BLACK, other)[0, 0].tolist() == [DIFFERENCE_GAIN, 10 * DIFFERENCE_GAIN, 255]
    np.testing.assert_array_equal(difference(BLACK, other), difference(other, BLACK))
    assert not difference(other, other).any()


def test_a_shown_hole_leaves_the_rest_alone() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    shown = hole_shown(BLACK, mask)
    assert not shown[mask == 0].any()
    assert shown[mask > 0].any(axis=-1).all()
