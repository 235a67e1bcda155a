"""Toyland: what can be in a picture, and how a picture is described.

A `Scene` or a `Portrait` is a full description: the renderer adds nothing to it, so the truth of every task is known.
Captions come from a closed grammar; every word is in `VOCABULARY`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

TIMES = ("day", "sunset", "night")
GROUNDS = ("grass", "sand", "snow")
KINDS = ("house", "tree", "car", "balloon", "flower")
COLOURS = ("red", "yellow", "blue", "purple")
PLACES = ("left", "middle", "right")
SIZES = ("small", "big")
SKINS = ("light", "tan", "dark")
HAIRS = ("black", "blond", "red", "brown")
CUTS = ("short", "long")
EXPRESSIONS = ("happy", "sad", "surprised")
STYLES = ("cartoon", "neon", "pastel")

PASTEL_PROMPT = "make it pastel"
WINTER_PROMPT = "make it snow at night"
GOLDEN_PROMPT = "make it yellow at sunset"
TIME_PHRASE = {"day": "by day", "sunset": "at sunset", "night": "at night"}
PLACE_PHRASE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One object of a scene.

    `dx` and `scale` are continuous variations, in picture widths and as a factor.
    """

    kind: str
    colour: str
    place: str
    size: str
    dx: float = 0.0
    scale: float = 1.0

    @property
    def phrase(self) -> str:
        """The toy as captions name it."""
        return f"a {self.size} {self.colour} {self.kind} {PLACE_PHRASE[self.place]}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An outdoor scene; `hill` is the phase of the horizon in radians, `sun_left` says on which side the sun or moon is."""

    time: str
    ground: str
    toys: tuple[Toy, ...]
    hill: float = 0.0
    sun_left: bool = True

    @property
    def caption(self) -> str:
        """The prompt that the scene is the truth of."""
        parts = [toy.phrase for toy in self.toys]
        listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        return f"{listed}, on {self.ground}, {TIME_PHRASE[self.time]}"


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A face; `tilt` shifts the eyes and mouth sideways, in picture widths."""

    skin: str
    hair: str
    cut: str
    expression: str
    tilt: float = 0.0
    scale: float = 1.0

    @property
    def caption(self) -> str:
        """The prompt that the portrait is the truth of."""
        return f"a portrait of a {self.expression} person with {self.skin} skin and {self.cut} {self.hair} hair"


def sample_scene(rng: np.random.Generator, counts: tuple[float, ...] = (0.68, 0.25, 0.07)) -> Scene:
    """Draw a scene; `counts[i]` is the probability of i+1 objects (they never share a place)."""
    n = 1 + int(rng.choice(len(counts), p=counts))
    places = sorted(rng.choice(3, size=n, replace=False))
    toys = tuple(
        Toy(
            kind=str(rng.choice(KINDS)),
            colour=str(rng.choice(COLOURS)),
            place=PLACES[p],
            size=SIZES[int(rng.random() < (0.75 if n == 1 else 0.4))],
            dx=float(rng.uniform(-0.02, 0.02)),
            scale=float(rng.uniform(0.94, 1.06)),
        )
        for p in places
    )
    busy = {toy.place for toy in toys if toy.kind == "balloon"}
    sun_left = "left" not in busy if busy & {"left", "right"} else bool(rng.random() < 0.5)
    return Scene(
        time=str(rng.choice(TIMES)),
        ground=str(rng.choice(GROUNDS)),
        toys=toys,
        hill=float(rng.uniform(0, 2 * np.pi)),
        sun_left=sun_left,
    )


def sample_portrait(rng: np.random.Generator) -> Portrait:
    """Draw a portrait, all attributes uniform."""
    return Portrait(
        skin=str(rng.choice(SKINS)),
        hair=str(rng.choice(HAIRS)),
        cut=str(rng.choice(CUTS)),
        expression=str(rng.choice(EXPRESSIONS)),
        tilt=float(rng.uniform(-0.02, 0.02)),
        scale=float(rng.uniform(0.95, 1.05)),
    )


def sample_edit(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """Draw one attribute change of a scene: the instruction and the scene after it.

    Recolouring names the object by kind, so it is drawn only where one object of that kind is present.
    """
    kinds = [toy.kind for toy in scene.toys]
    unique = [i for i, kind in enumerate(kinds) if kinds.count(kind) == 1]
    change = str(rng.choice(("time", "ground", "colour") if unique else ("time", "ground")))
    if change == "time":
        time = str(rng.choice([t for t in TIMES if t != scene.time]))
        return f"make it {time}", replace(scene, time=time)
    if change == "ground":
        ground = str(rng.choice([g for g in GROUNDS if g != scene.ground]))
        return f"cover the ground with {ground}", replace(scene, ground=ground)
    i = int(rng.choice(unique))
    toy = scene.toys[i]
    colour = str(rng.choice([c for c in COLOURS if c != toy.colour]))
    toys = (*scene.toys[:i], replace(toy, colour=colour), *scene.toys[i + 1 :])
    return f"turn the {toy.kind} {colour}", replace(scene, toys=toys)


def without(scene: Scene, index: int) -> Scene:
    """The same scene with object `index` taken away (possibly the last one)."""
    return replace(scene, toys=scene.toys[:index] + scene.toys[index + 1 :])


def sticker_prompt(toy: Toy) -> str:
    """The prompt for the sticker of one toy."""
    return f"a sticker of the {toy.colour} {toy.kind}"


def style_prompt(style: str) -> str:
    """The prompt for a portrait in a style."""
    return f"a portrait in {style} style"


def winter(scene: Scene) -> Scene:
    """The same scene on snow at night."""
    return replace(scene, time="night", ground="snow")


def golden(scene: Scene) -> Scene:
    """The same scene at sunset, everything in it yellow."""
    return replace(scene, time="sunset", toys=tuple(replace(toy, colour="yellow") for toy in scene.toys))


def removal_prompt(toy: Toy) -> str:
    """The prompt that takes one toy away."""
    return f"remove the {toy.kind}"


def _vocabulary() -> tuple[str, ...]:
    phrases = (
        *TIMES, *GROUNDS, *KINDS, *COLOURS, *PLACES, *SIZES, *SKINS, *HAIRS, *CUTS, *EXPRESSIONS, *STYLES,
        *TIME_PHRASE.values(), *PLACE_PHRASE.values(),
        "a portrait of a person with skin and hair", "make it", "cover the ground with", "turn the", "remove the",
        "a sticker of the", "a portrait in style", "on",
    )  # fmt: skip
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARY = _vocabulary()
