"""The table as a picture: bars that lie, one a side, a panel a size; legible on light and on dark pages, as it brings its own ground."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from benchmarks.rig.peers.table import PEERS, Peer

WIDTH, LEFT, RIGHT, ROW, BAR, TOP = 960, 330, 110, 27, 17, 74
INK, SOFT, GROUND, RULE = "#1f2933", "#52606d", "#fbfaf7", "#d9d4c7"
OURS, THEIRS = "#0072b2", "#9aa5b1"  # told apart by lightness too
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def picture(results: Mapping[str, Mapping[str, Any]], machine: str, peers: Mapping[str, Peer] = PEERS) -> str:
    """SVG text of all that was measured.

    Args:
        machine: a line on what it was measured on.
    """
    body: list[str] = []
    top = float(TOP)
    for latent, sides in results.items():
        panel, top = _panel(latent, {name: sides[name] for name in peers if name in sides}, peers, top)
        body += panel
    height = top + 14
    said = "Times of one U-Net call of Stable Diffusion 1.5's shape, by program; shorter is better."
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-labelledby="t d" font-family="{FONT}"><title id="t">quad beside its peers</title><desc id="d">{said}</desc>'
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="14" fill="{GROUND}"/>'
    )
    lines = [
        _text(28, 34, "One U-Net call of Stable Diffusion 1.5's shape with a LoRA: time over quad's", size=16, weight=600),
        _text(28, 55, machine, size=12, fill=SOFT),
    ]
    return head + "".join([*lines, *body]) + "</svg>\n"


def _panel(latent: str, sides: Mapping[str, Any], peers: Mapping[str, Peer], top: float) -> tuple[list[str], float]:
    """The bars of one size, the fastest first, and where the next panel begins; ratios alone are paired, so they are what is drawn."""
    longest = max((side["ratio"] for side in sides.values()), default=1.0)
    pixels = 8 * int(latent)
    parts = [_text(28, top + 18, f"{latent}x{latent} latents, a picture of {pixels} pixels", size=13, fill=SOFT, weight=600)]
    first = y = top + 30
    for name, side in sorted(sides.items(), key=lambda item: item[1]["ratio"]):
        parts += _bar(peers[name], side, y, (WIDTH - LEFT - RIGHT) * side["ratio"] / longest)
        y += ROW
    parts.append(f'<path d="M{LEFT} {first - 2:.0f}V{y - ROW + BAR + 8:.0f}" stroke="{RULE}"/>')
    return parts, y + 8


def _bar(peer: Peer, side: Mapping[str, Any], y: float, width: float) -> list[str]:
    middle, weight = y + BAR - 4, 600 if peer.ours else 400
    value = f"{side['ratio']:.2f}x, {side['median_ms'] / 1e3:.2f} s"
    return [
        _text(LEFT - 10, middle, peer.title, anchor="end", weight=weight),
        f'<rect x="{LEFT}" y="{y:.0f}" width="{max(width, 1):.1f}" height="{BAR}" rx="3" fill="{OURS if peer.ours else THEIRS}"/>',
        _text(LEFT + width + 8, middle, value, weight=weight),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", **style: object) -> str:
    style = {"size": 13, "weight": 400, "fill": INK, **style}
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{style["size"]}" fill="{style["fill"]}" text-anchor="{anchor}"'
    place += f' font-weight="{style["weight"]}"'
    return f"<text {place}>{escape(text)}</text>"
