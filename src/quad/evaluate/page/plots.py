"""Small plots as inline SVG text: line chart, bar chart and heat map. No script, no font file; colours follow the page's style.

Everything here is a pure function of numbers to text. Lengths are SVG pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 580, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 30, 46
TICKS = 5
# Told apart by colour-blind readers too. Source: Okabe and Ito 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
COOL, WARM = (44, 106, 178), (213, 94, 0)


@dataclass(frozen=True)
class Axis:
    """A labelled axis; `low` and `high` None: what the values need, with round ends."""

    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]


def nice_step(span: float, ticks: int = TICKS) -> float:
    """The 1, 2 or 5 times a power of ten that gives at most `ticks` steps over `span`."""
    if not span > 0:
        return 1.0
    raw = span / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def axis_ticks(axis: Axis, values: Sequence[float]) -> list[float]:
    """Round positions that hold all values, ends included."""
    low = min(values, default=0.0) if axis.low is None else axis.low
    high = max(values, default=1.0) if axis.high is None else axis.high
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = nice_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    head = f'<svg class="plot" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{escape(title)}">'
    return head + _text(width / 2, 16, title, more=' class="title"') + "".join(body) + "</svg>"


@dataclass(frozen=True)
class _Frame:
    """From values to pixels inside the axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _grid(frame: _Frame, ticks: Sequence[float], label: str) -> list[str]:
    parts = []
    for tick in ticks:
        _, y = frame.at(frame.x[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 7, y + 4, f"{tick:g}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [*parts, _text(14, middle, label, more=f' transform="rotate(-90 14 {middle:.1f})"')]


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Lines over two numeric axes, with a dot at every point and its values in a tooltip."""
    xs = [point[0] for line in series for point in line.points]
    x_ticks, y_ticks = axis_ticks(x, xs), axis_ticks(y, [point[1] for line in series for point in line.points])
    frame = _Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    body = _grid(frame, y_ticks, y.label)
    body += [_text(frame.at(tick, 0)[0], HEIGHT - BOTTOM + 17, f"{tick:g}") for tick in x_ticks]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label))
    for i, line in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        places = [frame.at(*point) for point in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        for (px, py), (vx, vy) in zip(places, line.points, strict=True):
            tip = escape(f"{line.name}: {vx:g}, {vy:.4g}")
            body.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"><title>{tip}</title></circle>')
    return _svg(WIDTH, HEIGHT + _legend_height(series), title, [*body, *_legend(series)])


def _legend_height(series: Sequence[Series]) -> int:
    return 0 if len(series) < 2 else 22 * math.ceil(len(series) / 4)


def _legend(series: Sequence[Series]) -> list[str]:
    """Names below the chart, four a line; none for a single line."""
    parts = []
    for i, line in enumerate(series if len(series) > 1 else ()):
        x, y = LEFT + (i % 4) * 124, HEIGHT + 12 + 22 * (i // 4)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="12" height="12" rx="3" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(_text(x + 18, y + 1, line.name, "start"))
    return parts


def bar_chart(title: str, y: Axis, bars: Sequence[tuple[str, float]], target: float | None = None) -> str:
    """One upright bar a name with its value above it; `target` is a dashed line."""
    values = [value for _, value in bars]
    ticks = axis_ticks(y, [*values, *([] if target is None else [target]), *([] if y.low is not None else [0.0])])
    frame = _Frame((0.0, max(1, len(bars))), (ticks[0], ticks[-1]))
    body = _grid(frame, ticks, y.label)
    floor = frame.at(0, min(max(0.0, ticks[0]), ticks[-1]))[1]
    for i, (name, value) in enumerate(bars):
        left, top = frame.at(i + 0.2, value)
        right, _ = frame.at(i + 0.8, value)
        place = f'x="{left:.1f}" y="{min(top, floor):.1f}" width="{right - left:.1f}" height="{abs(floor - top):.1f}"'
        body.append(f'<rect {place} rx="3" fill="{COLOURS[0]}"/>')
        body.append(_text((left + right) / 2, min(top, floor) - 5, f"{value:.3g}"))
        body.append(_text((left + right) / 2, HEIGHT - BOTTOM + 17, name))
    if target is not None:
        _, at = frame.at(0, target)
        body.append(f'<line class="target" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
    return _svg(WIDTH, HEIGHT, title, body)


def shade(share: float) -> str:
    """A colour between cool (0) and warm (1), as `#rrggbb`; values outside are held at the ends."""
    t = min(1.0, max(0.0, share))
    return "#" + "".join(f"{round(a + t * (b - a)):02x}" for a, b in zip(COOL, WARM, strict=True))


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], labels: tuple[str, str]) -> str:
    """A table of numbers on coloured cells, cool for the smallest and warm for the largest.

    Args:
        values: one row a name of `rows`, one value a name of `columns`.
        labels: what the rows and what the columns are.
    """
    cell, high, left, top = 84, 34, 150, 66
    flat = [value for row in values for value in row]
    low, span = min(flat, default=0.0), (max(flat, default=0.0) - min(flat, default=0.0)) or 1.0
    body = [_text(left - 10, top - 12, labels[0], "end"), _text(left + cell * len(columns) / 2, 36, labels[1])]
    body += [_text(left + (j + 0.5) * cell, top - 12, name) for j, name in enumerate(columns)]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * high
        body.append(_text(left - 10, y + high / 2 + 4, name, "end"))
        for j, value in enumerate(row):
            fill = shade((value - low) / span)
            body.append(f'<rect x="{left + j * cell + 1}" y="{y + 1}" width="{cell - 2}" height="{high - 2}" rx="4" fill="{fill}"/>')
            body.append(_text(left + (j + 0.5) * cell, y + high / 2 + 4, f"{value:.3g}", more=' class="on-cell"'))
    return _svg(left + cell * len(columns) + RIGHT, top + high * len(rows) + 14, title, body)
