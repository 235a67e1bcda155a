"""The objects of Toyland as filled polygons.

Coordinates are picture fractions, x to the right and y down. A shape knows its fill and whether it is the object's
main body, which carries the colour word. The same shapes make the picture, its line drawing, masks and stickers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quad.zoo.world import Portrait, Scene, Toy

RGB = tuple[int, int, int]

COLOUR_RGB: dict[str, RGB] = {"red": (214, 52, 52), "yellow": (246, 200, 44), "blue": (52, 106, 222), "purple": (146, 70, 190)}
SKIN_RGB: dict[str, RGB] = {"light": (250, 218, 190), "tan": (214, 160, 112), "dark": (122, 78, 54)}
HAIR_RGB: dict[str, RGB] = {"black": (36, 32, 40), "blond": (240, 208, 96), "red": (204, 84, 36), "brown": (106, 66, 38)}
INK: RGB = (40, 40, 56)
WHITE: RGB = (250, 250, 250)
WINDOW: RGB = (250, 238, 176)
WOOD: RGB = (116, 76, 48)
LEAF: RGB = (60, 150, 70)
PLACE_X = {"left": 0.20, "middle": 0.5, "right": 0.80}
SIZE_SCALE = {"small": 0.33, "big": 0.46}
ELLIPSE_POINTS = 32
STAND_Y = 0.80
BALLOON_Y = 0.58


@dataclass(frozen=True)
class Shape:
    """A filled polygon `points (n, 2)`; `in_line_art` False leaves it out of line drawings."""

    points: np.ndarray
    fill: RGB
    in_line_art: bool = True


def ellipse(cx: float, cy: float, rx: float, ry: float, fill: RGB, in_line_art: bool = True) -> Shape:
    """An ellipse around `(cx, cy)` with radii `rx` and `ry`."""
    a = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return Shape(np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1), fill, in_line_art)


def polygon(*xy: float, fill: RGB, in_line_art: bool = True) -> Shape:
    """A polygon of points `x0, y0, x1, y1, ...`."""
    return Shape(np.asarray(xy, dtype=np.float64).reshape(-1, 2), fill, in_line_art)


def box(x0: float, y0: float, x1: float, y1: float, fill: RGB) -> Shape:
    """An upright rectangle between two corners."""
    return polygon(x0, y0, x1, y0, x1, y1, x0, y1, fill=fill)


def darker(rgb: RGB, factor: float = 0.68) -> RGB:
    """A colour at `factor` of its brightness."""
    return (int(rgb[0] * factor), int(rgb[1] * factor), int(rgb[2] * factor))


def _house(c: RGB) -> list[Shape]:
    return [
        box(-0.42, -0.62, 0.42, 0.0, c),
        polygon(-0.54, -0.60, 0.0, -1.02, 0.54, -0.60, fill=darker(c, 0.55)),
        box(-0.10, -0.34, 0.14, 0.0, WOOD),
        box(-0.34, -0.46, -0.16, -0.26, WINDOW),
    ]


def _tree(c: RGB) -> list[Shape]:
    return [box(-0.09, -0.45, 0.09, 0.0, WOOD), ellipse(0, -0.68, 0.40, 0.36, c)]


def _car(c: RGB) -> list[Shape]:
    return [
        polygon(-0.30, -0.34, -0.18, -0.60, 0.24, -0.60, 0.38, -0.34, fill=darker(c)),
        polygon(-0.15, -0.36, -0.09, -0.53, 0.17, -0.53, 0.25, -0.36, fill=(200, 228, 240)),
        polygon(-0.62, -0.12, -0.60, -0.34, 0.52, -0.36, 0.62, -0.28, 0.62, -0.12, fill=c),
        ellipse(-0.34, -0.12, 0.15, 0.15, INK),
        ellipse(0.34, -0.12, 0.15, 0.15, INK),
    ]


def _balloon(c: RGB) -> list[Shape]:
    return [
        polygon(-0.26, -0.42, 0.26, -0.42, 0.10, -0.14, -0.10, -0.14, fill=darker(c)),
        ellipse(0, -0.66, 0.38, 0.36, c),
        ellipse(0, -0.66, 0.13, 0.36, darker(c, 0.8), in_line_art=False),
        box(-0.12, -0.16, 0.12, 0.02, WOOD),
    ]


def _flower(c: RGB) -> list[Shape]:
    petals = [
        ellipse(0.24 * float(np.cos(a)), -0.68 + 0.24 * float(np.sin(a)), 0.17, 0.17, c)
        for a in np.linspace(0.3, 2 * np.pi + 0.3, 5, endpoint=False)
    ]
    leaf = polygon(0.0, -0.10, 0.26, -0.30, 0.10, -0.06, fill=LEAF)
    return [box(-0.05, -0.60, 0.05, 0.0, LEAF), leaf, *petals, ellipse(0, -0.68, 0.15, 0.15, WINDOW)]


_KIND_SHAPES = {"house": _house, "tree": _tree, "car": _car, "balloon": _balloon, "flower": _flower}


def toy_shapes(toy: Toy) -> list[Shape]:
    """The shapes of one object, back to front, in picture fractions."""
    unit = SIZE_SCALE[toy.size] * toy.scale * (0.9 if toy.kind == "car" else 1.0)
    origin = np.array([PLACE_X[toy.place] + toy.dx, BALLOON_Y if toy.kind == "balloon" else STAND_Y])
    return [Shape(shape.points * unit + origin, shape.fill, shape.in_line_art) for shape in _KIND_SHAPES[toy.kind](COLOUR_RGB[toy.colour])]


def horizon(scene: Scene, n: int = 33) -> np.ndarray:
    """The upper edge of the ground as points `(n, 2)`."""
    x = np.linspace(0, 1, n)
    return np.stack([x, 0.66 + 0.025 * np.sin(2 * np.pi * x * 0.9 + scene.hill)], axis=1)


def sun(scene: Scene) -> Shape:
    """The sun or the moon, high by day and at night, on the horizon at sunset."""
    x = 0.13 if scene.sun_left else 0.87
    return {
        "day": ellipse(x, 0.14, 0.075, 0.075, (255, 232, 120)),
        "sunset": ellipse(x, 0.58, 0.085, 0.085, (255, 190, 90)),
        "night": ellipse(x, 0.14, 0.065, 0.065, (236, 236, 214)),
    }[scene.time]


def _mouth(expression: str, x: float, y: float) -> list[Shape]:
    a = np.linspace(0, np.pi, 14)
    if expression == "surprised":
        return [ellipse(x, y + 0.02, 0.060, 0.078, (120, 24, 40))]
    sign = 1.0 if expression == "happy" else -1.0
    base = y - 0.025 if expression == "happy" else y + 0.065
    outer = np.stack([x + 0.135 * np.cos(a), base + sign * 0.105 * np.sin(a)], axis=1)
    if expression == "happy":
        return [Shape(outer, (150, 30, 44))]
    inner = np.stack([x + 0.085 * np.cos(a[::-1]), base - 0.045 * np.sin(a[::-1])], axis=1)
    return [Shape(np.concatenate([outer, inner]), (150, 30, 44))]


def portrait_shapes(face: Portrait) -> list[Shape]:
    """The shapes of a portrait, back to front, in picture fractions."""
    hair, skin = HAIR_RGB[face.hair], SKIN_RGB[face.skin]
    long_hair = [box(0.20, 0.40, 0.80, 0.86, hair)] if face.cut == "long" else []
    x = 0.5 + face.tilt
    brow = -0.035 if face.expression == "surprised" else 0.0
    shapes = [
        *long_hair,
        ellipse(0.5, 0.42, 0.32, 0.34, hair),
        polygon(0.16, 1.02, 0.24, 0.90, 0.40, 0.84, 0.60, 0.84, 0.76, 0.90, 0.84, 1.02, fill=(70, 96, 150)),
        box(0.42, 0.70, 0.58, 0.88, darker(skin, 0.88)),
        ellipse(0.5, 0.51, 0.245, 0.30, skin),
        ellipse(x - 0.105, 0.46 + brow, 0.052, 0.052, WHITE),
        ellipse(x + 0.105, 0.46 + brow, 0.052, 0.052, WHITE),
        ellipse(x - 0.105, 0.465 + brow, 0.030, 0.034, INK),
        ellipse(x + 0.105, 0.465 + brow, 0.030, 0.034, INK),
        *_mouth(face.expression, x, 0.66),
    ]
    centre = np.array([0.5, 0.55])
    return [Shape((s.points - centre) * face.scale + centre, s.fill, s.in_line_art) for s in shapes]
