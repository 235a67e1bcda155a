"""The judge: a small classifier of our own that says what a picture of Toyland shows.

It reads 64x64 pictures, larger ones reduced to that, knows every attribute word of `quad.zoo.world`, and is trained on renders by
`python -m quad.zoo.train.judge`. Its features also serve the toy versions of LPIPS and FID (docs/method.md section 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from quad.core.errors import InputError, mismatch
from quad.zoo import world
from quad.zoo.world import Portrait, Scene, Toy

SIZE = 64
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
MEDIA = ("scene", "portrait", "sticker")
NONE = "none"
HEADS: dict[str, tuple[str, ...]] = {
    "medium": MEDIA,
    "time": world.TIMES,
    "ground": world.GROUNDS,
    **{f"{place}.kind": (NONE, *world.KINDS) for place in world.PLACES},
    **{f"{place}.colour": world.COLOURS for place in world.PLACES},
    "skin": world.SKINS,
    "hair": world.HAIRS,
    "cut": world.CUTS,
    "expression": world.EXPRESSIONS,
    "style": (NONE, *world.STYLES),
}
SCENE_HEADS = ("time", "ground")
FACE_HEADS = ("skin", "hair", "cut", "expression", "style")
BATCH = 64


def _toys(toys: Sequence[Toy]) -> dict[str, str]:
    attributes = {f"{place}.kind": NONE for place in world.PLACES}
    for toy in toys:
        attributes[f"{toy.place}.kind"] = toy.kind
        attributes[f"{toy.place}.colour"] = toy.colour
    return attributes


def truth_of(subject: Scene | Portrait, style: str | None = None) -> dict[str, str]:
    """The attributes that a perfect judge would read off the picture of `subject`."""
    if isinstance(subject, Portrait):
        face = {"skin": subject.skin, "hair": subject.hair, "cut": subject.cut, "expression": subject.expression}
        return {"medium": "portrait", **face, "style": style or NONE}
    return {"medium": "scene", "time": subject.time, "ground": subject.ground, **_toys(subject.toys)}


def truth_of_sticker(toy: Toy) -> dict[str, str]:
    """The attributes of the sticker of one object."""
    return {"medium": "sticker", **_toys([toy])}


class JudgeNet(nn.Module):
    """Five convolutions and one hidden layer, 0.4 M parameters; picture `(N, 3, 64, 64)` in [-1, 1] to all heads' logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 24, 2), (24, 40, 2), (40, 56, 1), (56, 64, 2), (64, 28, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in widths)
        self.hidden = nn.Linear(28 * 8 * 8, 176)
        self.out = nn.Linear(176, sum(len(words) for words in HEADS.values()))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The five feature maps, finest first."""
        maps = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            maps.append(x)
        return maps

    def embed(self, last: Tensor) -> Tensor:
        """The hidden layer `(N, 176)` from the last map."""
        return torch.relu(self.hidden(last.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.embed(self.maps(x)[-1]))
        return logits


def split_heads(logits: Tensor) -> dict[str, Tensor]:
    """Logits `(N, sum)` by head."""
    return dict(zip(HEADS, logits.split([len(words) for words in HEADS.values()], dim=1), strict=True))


def reduced(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures `(N, 64 k, 64 k, 3)` at 64 pixels, by means of k by k.

    Raises:
        InputError: another shape or element type.
    """
    factor = pictures.shape[1] // SIZE if pictures.ndim == 4 else 0
    if factor < 1 or pictures.shape[1:] != (factor * SIZE, factor * SIZE, 3) or pictures.dtype != np.uint8:
        actual = f"{pictures.dtype} {pictures.shape}"
        raise InputError(mismatch("judge", f"uint8 pictures (N, {SIZE}, {SIZE}, 3), or whole multiples", actual, "resize them first"))
    if factor == 1:
        return pictures
    means = pictures.reshape(len(pictures), SIZE, factor, SIZE, factor, 3).mean(axis=(2, 4))
    return np.asarray(np.round(means), dtype=np.uint8)


def to_signal(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 `(N, 64 k, 64 k, 3)` to float `(N, 3, 64, 64)` in [-1, 1].

    Raises:
        InputError: as `reduced`.
    """
    return torch.from_numpy(np.ascontiguousarray(reduced(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


def _visible(row: dict[str, str]) -> dict[str, str]:
    """Only what the picture can show: no skin in a scene, no colour where nothing stands."""
    if row["medium"] == "portrait":
        return {name: row[name] for name in ("medium", *FACE_HEADS)}
    names = ["medium", *(SCENE_HEADS if row["medium"] == "scene" else ())]
    for place in world.PLACES:
        names.append(f"{place}.kind")
        if row[f"{place}.kind"] != NONE:
            names.append(f"{place}.colour")
    return {name: row[name] for name in names}


class Judge:
    """The trained classifier."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @staticmethod
    def load(path: Path = WEIGHTS) -> Judge:
        """Open the shipped weights (fp16 on disk, float32 in memory).

        Raises:
            InputError: the file is not there.
        """
        if not path.is_file():
            raise InputError(mismatch(str(path), "the judge's weights", "no file", "run python -m quad.zoo.train.judge"))
        net = JudgeNet()
        net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return Judge(net)

    def attributes(self, pictures: NDArray[np.uint8]) -> list[dict[str, str]]:
        """The attributes of each picture, by head; only heads that apply to its medium.

        Args:
            pictures: uint8 `(N, 64, 64, 3)`, or whole multiples.
        """
        with torch.inference_mode():
            parts = [split_heads(self.net(x)) for x in to_signal(pictures).split(BATCH)]
        picks = {name: torch.cat([part[name] for part in parts]).argmax(1).tolist() for name in HEADS} if parts else {}
        rows = [{name: HEADS[name][picks[name][i]] for name in HEADS} for i in range(len(pictures))]
        return [_visible(row) for row in rows]

    def features(self, pictures: NDArray[np.uint8]) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """The convolution maps, each `(N, C, h, w)`, and the embedding `(N, 176)`."""
        with torch.inference_mode():
            maps: list[list[Tensor]] = []
            embedded = []
            for x in to_signal(pictures).split(BATCH):
                maps.append(self.net.maps(x))
                embedded.append(self.net.embed(maps[-1][-1]))
        joined = [torch.cat(level).numpy() for level in zip(*maps, strict=True)]
        return joined, torch.cat(embedded).numpy()
