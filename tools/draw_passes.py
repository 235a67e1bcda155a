"""The picture of docs/passes.md: one attention of a real graph before and after passes, drawn as SVG.

    quad build toyland --dump-passes DUMP -o BUNDLE
    python tools/draw_passes.py DUMP/unet/11-fix_names.onnx docs/passes.svg   (the last graph of `tidy`)

The attention is the first self-attention; drawn is all from the norm before it to the Site behind it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from pathlib import Path

import onnx_ir as ir

from quad.compile.passes import run_passes
from quad.compile.passes.integers.remove_sites import is_site

PASSES = ("linear_to_conv", "merge_equal", "cancel_transposes")
ATTENTION = "attn1"
END = ".to_out.0.in"
COLUMN, ROW, BOX, HEIGHT, TOP, GAP = 92, 40, 84, 26, 76, 40
COLORS = {"Transpose": "#f2b8a0", "Reshape": "#f6e3b4", "Conv": "#a9c9ee", "MatMul": "#a9c9ee", "Site": "#e8e8e8", "slot": "#b9e2bd"}
PLAIN = "#ffffff"


@dataclass(frozen=True)
class Box:
    """One operator or slot input in the picture."""

    key: int
    label: str
    kind: str
    above: tuple[int, ...]


def attention(model: ir.Model) -> list[Box]:
    """The boxes between the norm and the attention's end, inputs first."""
    end = next(node for node in model.graph if is_site(node) and _site(node).endswith(f"{ATTENTION}{END}"))
    seen: dict[int, Box] = {}

    def visit(value: ir.Value | None) -> int | None:
        node = None if value is None else value.producer()
        if value is None or value.const_value is not None:
            return None
        if node is None:
            seen.setdefault(id(value), Box(id(value), (value.name or "").rsplit("_", 1)[-1], "slot", ()))
            return id(value)
        if id(node) not in seen:
            stop = node.op_type == "LayerNormalization"
            above = () if stop else tuple(key for one in node.inputs if (key := visit(one)) is not None)
            seen[id(node)] = Box(id(node), _label(node), node.op_type, above)
        return id(node)

    visit(end.outputs[0])
    return list(seen.values())


def _site(node: ir.Node) -> str:
    return node.attributes["name"].as_string()


def _label(node: ir.Node) -> str:
    if is_site(node):
        return f".{_site(node).split(ATTENTION + '.', 1)[-1].removeprefix('to_').replace('.lora_mid', '.mid')}"
    return {"LayerNormalization": "LayerNorm", "Conv": "Conv 1x1"}.get(node.op_type, node.op_type)


def places(boxes: list[Box]) -> dict[int, tuple[float, int]]:
    """Column and row of each box: rows by the longest way from the top, slots right above their reader, columns near those above."""
    row: dict[int, int] = {}
    for box in boxes:
        row[box.key] = 1 + max((row[key] for key in box.above), default=-1)
    readers = defaultdict(list)
    for box in boxes:
        for key in box.above:
            readers[key].append(box.key)
    for box in boxes:
        if box.kind == "slot":
            row[box.key] = min(row[key] for key in readers[box.key]) - 1
    for box in boxes:  # a Transpose of a slot lies right above its reader too
        if len(box.above) == 1 and box.above[0] in row and next(b for b in boxes if b.key == box.above[0]).kind == "slot":
            row[box.key] = min(row[key] for key in readers[box.key]) - 1
            row[box.above[0]] = row[box.key] - 1
    lines = defaultdict(list)
    for box in boxes:
        lines[row[box.key]].append(box)
    column: dict[int, float] = {box.key: float(i) for i, box in enumerate(boxes)}
    for sweep in range(60):
        for index in sorted(lines, reverse=bool(sweep % 2)):
            near = {
                box.key: [column[key] for key in (*box.above, *readers[box.key])] or [column[box.key]]
                for box in lines[index]
            }  # fmt: skip
            ordered = sorted(lines[index], key=lambda box: sum(near[box.key]) / len(near[box.key]))
            wanted = [sum(near[box.key]) / len(near[box.key]) for box in ordered]
            for box, x in zip(ordered, _apart(wanted), strict=True):
                column[box.key] = x
    least = min(column.values())
    return {key: (x - least, row[key] - min(row.values())) for key, x in column.items()}


def _apart(wanted: list[float]) -> list[float]:
    """The same order, at least one column apart, moved as little as a push to both sides allows."""
    right = list(wanted)
    for i in range(1, len(right)):
        right[i] = max(right[i], right[i - 1] + 1)
    left = list(wanted)
    for i in reversed(range(len(left) - 1)):
        left[i] = min(left[i], left[i + 1] - 1)
    return [(a + b) / 2 for a, b in zip(left, right, strict=True)]


def draw(boxes: list[Box], title: str, offset: float) -> tuple[list[str], float, float]:
    """SVG lines of one graph, its right edge and its height."""
    at = {key: (offset + x * COLUMN, TOP + y * ROW) for key, (x, y) in places(boxes).items()}
    lines = [f'<text x="{offset:.0f}" y="24" class="title">{escape(title)}</text>']
    turns, total = sum(box.kind == "Transpose" for box in boxes), sum(box.kind != "slot" for box in boxes)
    lines.append(f'<text x="{offset:.0f}" y="46" class="note">{total} operators, {turns} of them Transpose</text>')
    for box in boxes:
        x, y = at[box.key]
        for key in box.above:
            u, v = at[key]
            start, end, bend = f"{u + BOX / 2:.1f}", f"{x + BOX / 2:.1f}", f"{y - ROW + HEIGHT:.1f}"
            lines.append(f'<path d="M{start} {v + HEIGHT} C {start} {v + ROW}, {end} {bend}, {end} {y}"/>')
    for box in boxes:
        x, y = at[box.key]
        color, round_ = COLORS.get(box.kind, PLAIN), 13 if box.kind == "slot" else 4
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="{round_}" fill="{color}"/>')
        lines.append(f'<text x="{x + BOX / 2:.1f}" y="{y + 17}" class="box">{escape(box.label)}</text>')
    return lines, max(x for x, _ in at.values()) + BOX, max(y for _, y in at.values()) + HEIGHT


def main(source: str, target: str) -> None:
    model = ir.load(source)
    before, width, height = draw(attention(model), "as torch writes it", GAP / 2)
    after, right, low = draw(attention(run_passes(model, PASSES)), f"after {', '.join(PASSES)}", width + GAP)
    style = (
        "text{font-family:sans-serif;fill:#222}.title{font-size:17px;font-weight:bold}.note{font-size:14px}.box{font-size:12px;text-anchor:middle}"
        "rect{stroke:#666}path{fill:none;stroke:#888}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + GAP / 2:.0f} {max(height, low) + 20:.0f}">'
    body = [
        head,
        f"<style>{style}</style>",
        '<rect width="100%" height="100%" fill="#fff" style="stroke:none"/>',
        *before,
        *after,
        "</svg>",
    ]
    Path(target).write_text("\n".join(body) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
