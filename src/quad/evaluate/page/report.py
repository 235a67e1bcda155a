"""`report.html`: one file that opens anywhere, with the pictures inside it and an honest table."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.evaluate.page.table import Row, Table

Picture = NDArray[np.uint8]
STYLE = Path(__file__).with_name("report.css")
DIFFERENCE_GAIN = 8
SHOWN = 4
COLUMNS = ("input", "FP32", "quantized", f"difference x{DIFFERENCE_GAIN}", "truth")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One sample: pictures uint8 `(S, S, 3)`; `truth` None where many pictures would be right."""

    prompt: str
    fp: Picture
    quantized: Picture
    facts: str
    image: Picture | None = None
    truth: Picture | None = None


@dataclass(frozen=True)
class Chapter:
    """One task."""

    task: str
    lead: str
    strips: Sequence[Strip]


@dataclass(frozen=True)
class Plots:
    """A headed row of plots, each inline SVG text of `quad.evaluate.page.plots`."""

    title: str
    lead: str
    svgs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the page says: `tables` and then `plots` stand before the chapters, `closing` after them."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    chapters: Sequence[Chapter]
    closing: Sequence[Table] = field(default_factory=tuple)
    footer: Sequence[str] = field(default_factory=tuple)
    plots: Sequence[Plots] = field(default_factory=tuple)


def difference(a: Picture, b: Picture) -> Picture:
    """The absolute difference, amplified by `DIFFERENCE_GAIN`, black where the pictures agree."""
    amplified: Picture = np.clip(np.abs(a.astype(np.int16) - b.astype(np.int16)) * DIFFERENCE_GAIN, 0, 255).astype(np.uint8)
    return amplified


def hole_shown(image: Picture, mask: NDArray[np.uint8]) -> Picture:
    """An input picture with its mask's rim drawn in, so that the reader sees what is to go."""
    inside = mask > 0
    padded = np.pad(inside, 1)
    core = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    shown = image.copy()
    shown[inside] = (shown[inside] * 0.55 + np.array([255, 40, 90]) * 0.45).astype(np.uint8)
    shown[inside & ~core] = (255, 40, 90)
    return shown


def png_uri(picture: Picture) -> str:
    """A picture as a `data:` address."""
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _badge(passed: bool | None) -> str:
    word, kind = {True: ("reached", "good"), False: ("missed", "bad"), None: ("", "none")}[passed]
    return f' <span class="badge {kind}">{word}</span>' if word else ""


def _row(row: Row) -> str:
    cells = "".join(f'<td class="n">{escape(cell.text)}{_badge(cell.passed)}</td>' for cell in row.cells)
    return f'<tr><td>{escape(row.name)}</td><td class="n bar">{escape(row.bar)}</td>{cells}<td class="note">{escape(row.note)}</td></tr>'


def _table(table: Table) -> str:
    heads = "".join(f'<th class="n">{escape(name)}</th>' for name in ("bar", *table.columns))
    rows = "\n".join(_row(row) for row in table.rows)
    head = f"<h2>{escape(table.title)}</h2><p>{escape(table.lead)}</p>"
    body = f"<thead><tr><th>figure</th>{heads}<th>beside it</th></tr></thead><tbody>{rows}</tbody>"
    return f'<section>{head}<div class="scroll"><table>{body}</table></div></section>'


def _plots(plots: Plots) -> str:
    head = f"<h2>{escape(plots.title)}</h2><p>{escape(plots.lead)}</p>"
    return f'<section>{head}<div class="scroll"><div class="plots">{"".join(plots.svgs)}</div></div></section>'


def _figure(caption: str, picture: Picture | None) -> str:
    if picture is None:
        return ""
    alt = escape(caption)
    return f'<figure><img alt="{alt}" src="{png_uri(picture)}"><figcaption>{alt}</figcaption></figure>'


def _strip(strip: Strip) -> str:
    pictures = (strip.image, strip.fp, strip.quantized, difference(strip.fp, strip.quantized), strip.truth)
    figures = [_figure(caption, picture) for caption, picture in zip(COLUMNS, pictures, strict=True)]
    count = sum(1 for figure in figures if figure)
    prompt = f'<div class="prompt"><q>{escape(strip.prompt)}</q><span>{escape(strip.facts)}</span></div>'
    return f'<div class="strip" style="--columns:{count}">{prompt}{"".join(figures)}</div>'


def _chapter(chapter: Chapter) -> str:
    first = "\n".join(_strip(strip) for strip in chapter.strips[:SHOWN])
    rest = chapter.strips[SHOWN:]
    more = f'<details><summary>{len(rest)} more</summary><div class="strips">{"".join(map(_strip, rest))}</div></details>' if rest else ""
    head = f"<h2>{escape(chapter.task)}</h2><p>{escape(chapter.lead)}</p>"
    strips = f'<div class="scroll"><div class="strips">{first}</div>{more}</div>'
    return f'<section id="{escape(chapter.task)}">{head}{strips}</section>'


def _chapter_link(chapter: Chapter) -> str:
    """A chapter's first input and the bundle's picture of it, as a link to the chapter."""
    if not chapter.strips:
        return ""
    first, name = chapter.strips[0], escape(chapter.task)
    shown = [picture for picture in (first.image, first.quantized) if picture is not None]
    pictures = "".join(f'<img alt="" src="{png_uri(picture)}">' for picture in shown)
    return f'<a class="door" href="#{name}"><span>{pictures}</span>{name}</a>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<div class="fact"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in facts)


def render(report: Report) -> str:
    """The whole page, self-contained: no script, no network."""
    tables, closing = ("\n".join(_table(table) for table in group) for group in (report.tables, report.closing))
    plots = "\n".join(_plots(group) for group in report.plots)
    chapters = "\n".join(_chapter(chapter) for chapter in report.chapters)
    links = "".join(_chapter_link(chapter) for chapter in report.chapters)
    switch = '<label class="switch"><input type="checkbox" id="pixels"> show single pixels (pictures are enlarged 3x)</label>'
    switch = switch if report.chapters else ""
    footer = "".join(f"<p>{escape(line)}</p>" for line in report.footer)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title><style>
{STYLE.read_text(encoding="utf-8")}</style></head>
<body><main><h1>{escape(report.title)}</h1><p class="lead">{escape(report.lead)}</p>
<div class="facts">{_facts(report.facts)}</div>
<nav>{links}</nav>
{switch}
{tables}
{plots}
{chapters}
{closing}
<footer>{footer}</footer></main></body></html>
"""
