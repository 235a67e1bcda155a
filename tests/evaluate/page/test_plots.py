"""Plots are well-formed SVG that shows every number, whatever the numbers are."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.evaluate.page.plots import COOL, WARM, Axis, Series, axis_ticks, bar_chart, heat_map, line_chart, nice_step, shade

FINITE = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag == "text"]


@given(st.floats(1e-6, 1e9), st.integers(2, 10))
def test_a_step_is_round_and_gives_no_more_ticks_than_asked(span: float, ticks: int) -> None:
    step = nice_step(span, ticks)
    assert f"{step:e}"[0] in "125"
    assert span / step <= ticks * (1 + 1e-6)


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_ticks_hold_all_values(values: list[float]) -> None:
    ticks = axis_ticks(Axis("y"), values)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert ticks == sorted(ticks)
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    assert len(ticks) >= 2


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=8))
def test_a_line_has_a_dot_for_every_point_inside_the_picture(points: list[tuple[float, float]]) -> None:
    root = ElementTree.fromstring(line_chart("a <b> & c", Axis("x"), Axis("y"), [Series("one", points)]))
    width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
    dots = [element.attrib for element in root.iter("circle")]
    assert len(dots) == len(points)
    assert all(0 <= float(dot["cx"]) <= width and 0 <= float(dot["cy"]) <= height for dot in dots)


def test_axes_and_lines_are_named() -> None:
    texts = _texts(line_chart("t", Axis("share, %"), Axis("PSNR, dB"), [Series("one", [(0, 1)]), Series("two", [(1, 2)])]))
    assert {"t", "share, %", "PSNR, dB", "one", "two"} <= set(texts)


def test_a_larger_number_is_higher() -> None:
    root = ElementTree.fromstring(line_chart("t", Axis("x"), Axis("y"), [Series("one", [(0, 1), (1, 5)])]))
    first, second = (float(dot.attrib["cy"]) for dot in root.iter("circle"))
    assert second < first


def test_bars_say_their_values_and_the_target_is_a_line() -> None:
    svg = bar_chart("t", Axis("gain"), [("removal", 0.99), ("sketch", 1.25)], target=1.0)
    assert {"removal", "sketch", "0.99", "1.25"} <= set(_texts(svg))
    assert 'class="target"' in svg


def test_shades_go_from_cool_to_warm() -> None:
    assert shade(0.0) == shade(-1.0) == "#{:02x}{:02x}{:02x}".format(*COOL)
    assert shade(1.0) == shade(2.0) == "#{:02x}{:02x}{:02x}".format(*WARM)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_heat_map_shows_every_cell_the_largest_warm(value: float) -> None:
    svg = heat_map("t", ["a", "b"], ["a", "b"], [[1.0, 2.0], [value, 7.5]], ("adapter", "encodings"))
    assert {"a", "b", "1", "2", "7.5", "adapter", "encodings"} <= set(_texts(svg))
    assert shade(1.0) in svg
    assert heat_map("t", ["a"], ["a"], [[value]], ("i", "j")).count("<rect") == 1
