"""From a description to pixels: anti-aliased, deterministic, uint8 RGB arrays `(H, W, 3)`.

Everything is rasterised at four times the size with Pillow and reduced by a box filter.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from quad.zoo.shapes import INK, RGB, WHITE, WINDOW, Shape, darker, horizon, portrait_shapes, sun, toy_shapes
from quad.zoo.world import Portrait, Scene, Toy

SUPERSAMPLE = 4
SKY_RGB: dict[str, tuple[RGB, RGB]] = {
    "day": ((92, 168, 240), (204, 232, 250)),
    "sunset": ((120, 84, 160), (252, 158, 96)),
    "night": ((14, 18, 52), (52, 60, 118)),
}
GROUND_RGB: dict[str, tuple[RGB, RGB]] = {
    "grass": ((112, 184, 84), (70, 138, 60)),
    "sand": ((238, 214, 152), (206, 172, 104)),
    "snow": ((246, 250, 254), (204, 220, 236)),
}
LIGHT = {"day": np.ones(3), "sunset": np.array([1.0, 0.84, 0.76]), "night": np.array([0.62, 0.62, 0.80])}
STICKER_GROUND: RGB = (150, 214, 200)
NEON_GROUND: RGB = (26, 12, 48)
CARTOON_GROUND: RGB = (255, 222, 60)
PAPER: RGB = (252, 248, 240)
PASTEL = 0.55


class Canvas:
    """A supersampled picture to draw shapes on; `size` is the final width and height in pixels."""

    def __init__(self, size: int, background: RGB | np.ndarray = WHITE) -> None:
        self.size = size
        self.scale = size * SUPERSAMPLE
        if isinstance(background, np.ndarray):
            self.image = Image.fromarray(background.astype(np.uint8))
        else:
            self.image = Image.new("RGB", (self.scale, self.scale), background)
        self.pen = ImageDraw.Draw(self.image)

    def fill(self, points: np.ndarray, rgb: RGB) -> None:
        """Fill a polygon `(n, 2)` of picture fractions."""
        self.pen.polygon([tuple(p) for p in (points * self.scale).tolist()], fill=rgb)

    def line(self, points: np.ndarray, rgb: RGB, width: float, closed: bool = True) -> None:
        """Stroke a path; `width` is a fraction of the picture."""
        loop = np.concatenate([points, points[:2]]) if closed else points
        self.pen.line([tuple(p) for p in (loop * self.scale).tolist()], fill=rgb, width=max(1, round(width * self.scale)), joint="curve")

    def pixels(self) -> np.ndarray:
        """The picture at its final size, uint8 `(size, size, 3)`."""
        return np.asarray(self.image.reduce(SUPERSAMPLE), dtype=np.uint8)


def _gradient(top: RGB, bottom: RGB, rows: int, columns: int) -> np.ndarray:
    t = np.linspace(0, 1, rows)[:, None]
    column = np.asarray(top) * (1 - t) + np.asarray(bottom) * t
    return np.repeat(np.round(column)[:, None, :], columns, axis=1)


def _lit(rgb: RGB, time: str) -> RGB:
    if rgb == WINDOW:
        return rgb
    r, g, b = np.round(np.asarray(rgb) * LIGHT[time]).astype(int).tolist()
    return (r, g, b)


def _backdrop(scene: Scene, size: int) -> Canvas:
    full = size * SUPERSAMPLE
    canvas = Canvas(size, _gradient(*SKY_RGB[scene.time], full, full))
    glow = sun(scene)
    canvas.fill(glow.points, glow.fill)
    light, dark = GROUND_RGB[scene.ground]
    ground = np.concatenate([horizon(scene), [[1.0, 1.0], [0.0, 1.0]]])
    canvas.fill(ground, _lit(light, scene.time))
    near = np.concatenate([horizon(scene)[::-1] * [1, -0.5] + [0, 1.20], [[0.0, 1.0], [1.0, 1.0]]])
    canvas.fill(near, _lit(dark, scene.time))
    return canvas


def draw_scene(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture of a scene."""
    canvas = _backdrop(scene, size)
    for toy in scene.toys:
        for shape in toy_shapes(toy):
            canvas.fill(shape.points, _lit(shape.fill, scene.time))
    return canvas.pixels()


def draw_lines(scene: Scene, size: int = 64) -> np.ndarray:
    """The line drawing of a scene: dark ink on white, hidden edges hidden."""
    canvas = Canvas(size)
    canvas.line(horizon(scene), INK, 0.022, closed=False)
    for toy in scene.toys:
        for shape in toy_shapes(toy):
            if shape.in_line_art:
                canvas.fill(shape.points, WHITE)
                canvas.line(shape.points, INK, 0.022)
    return canvas.pixels()


def draw_pastel(scene: Scene, size: int = 64) -> np.ndarray:
    """The scene in pale colours: every pixel `PASTEL` of the way to paper."""
    mixed = draw_scene(scene, size) * (1 - PASTEL) + np.asarray(PAPER) * PASTEL
    return np.round(mixed).astype(np.uint8)


def draw_mask(toy: Toy, size: int = 64, grow: float = 0.03) -> np.ndarray:
    """The silhouette of one object, grown by `grow` picture widths: uint8 `(H, W)`, 255 inside."""
    canvas = Canvas(size, (0, 0, 0))
    for shape in toy_shapes(toy):
        canvas.fill(shape.points, (255, 255, 255))
        canvas.line(shape.points, (255, 255, 255), 2 * grow)
    return np.where(canvas.pixels()[..., 0] > 0, np.uint8(255), np.uint8(0))


def draw_sticker(toy: Toy, size: int = 64) -> np.ndarray:
    """One object where it stood, with a white outline on flat ground."""
    canvas = Canvas(size, STICKER_GROUND)
    shapes = toy_shapes(toy)
    for shape in shapes:
        canvas.line(shape.points, WHITE, 0.09)
    for shape in shapes:
        canvas.fill(shape.points, shape.fill)
    return canvas.pixels()


def _portrait(shapes: Iterable[Shape], canvas: Canvas, tint: float, outline: RGB | None, width: float) -> np.ndarray:
    for shape in shapes:
        r, g, b = (np.asarray(shape.fill) * (1 - tint) + 255 * tint).astype(int).tolist()
        canvas.fill(shape.points, (r, g, b))
        if outline is not None:
            canvas.line(shape.points, outline, width)
    return canvas.pixels()


def draw_portrait(face: Portrait, style: str | None = None, size: int = 64) -> np.ndarray:
    """The picture of a face, plain (`style` None) or in one of the styles."""
    shapes = portrait_shapes(face)
    if style == "cartoon":
        return _portrait(shapes, Canvas(size, CARTOON_GROUND), 0.0, (16, 12, 20), 0.028)
    if style == "pastel":
        return _portrait(shapes, Canvas(size, PAPER), PASTEL, None, 0.0)
    if style == "neon":
        canvas = Canvas(size, NEON_GROUND)
        for shape in shapes:
            canvas.fill(shape.points, darker(shape.fill, 0.45))
            bright = np.clip(np.asarray(shape.fill) * 0.6 + 110, 0, 255).astype(int).tolist()
            canvas.line(shape.points, (bright[0], bright[1], bright[2]), 0.024)
        return canvas.pixels()
    full = size * SUPERSAMPLE
    return _portrait(shapes, Canvas(size, _gradient((176, 206, 196), (226, 236, 220), full, full)), 0.0, None, 0.0)
