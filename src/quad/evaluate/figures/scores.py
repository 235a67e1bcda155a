"""Pictures of Toyland against the truth of their samples: one function per task, the same for FP32 and quantized pictures.

Every score is a share 0..1 unless its name ends in `_db`. Source: docs/method.md section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from quad.evaluate.figures import metrics
from quad.evaluate.figures.evaluation import Scores
from quad.zoo import draw, world
from quad.zoo.judge import NONE, Judge, reduced, truth_of
from quad.zoo.samples import FEW_STEPS, Sample
from quad.zoo.world import Portrait, Scene

Pictures = NDArray[np.uint8]
STYLE_GROUND = {"cartoon": draw.CARTOON_GROUND, "neon": draw.NEON_GROUND, "pastel": draw.PAPER}
STYLE_DISTANCE = 0.2
FACE = ("skin", "hair", "cut", "expression")


def _share(hits: Sequence[bool]) -> float:
    """Mean of yes and no; 0 where nothing was asked, so that an empty row cannot pass."""
    return float(np.mean(hits)) if hits else 0.0


def _scene(picture: Scene | Portrait | None) -> Scene:
    if not isinstance(picture, Scene):
        raise TypeError(f"expected a Scene, found {type(picture).__name__}")
    return picture


def text_to_image(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """Shares of captions whose words are in the picture; an object counts at its asked place only."""
    hits: dict[str, list[bool]] = {name: [] for name in ("medium", "sky", "ground", "kind", "kind_colour", "kind_anywhere", *FACE)}
    for sample, predicted in zip(samples, judge.attributes(pictures), strict=True):
        if sample.after is None:
            continue
        truth = truth_of(sample.after)
        hits["medium"].append(predicted["medium"] == truth["medium"])
        if isinstance(sample.after, Portrait):
            for name in FACE:
                hits[name].append(predicted.get(name) == truth[name])
            continue
        hits["sky"].append(predicted.get("time") == truth["time"])
        hits["ground"].append(predicted.get("ground") == truth["ground"])
        for toy in sample.after.toys:
            kind = predicted.get(f"{toy.place}.kind") == toy.kind
            hits["kind"].append(kind)
            hits["kind_colour"].append(kind and predicted.get(f"{toy.place}.colour") == toy.colour)
            hits["kind_anywhere"].append(any(predicted.get(f"{place}.kind") == toy.kind for place in world.PLACES))
    return {name: _share(values) for name, values in hits.items() if values}


def transform(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """Was the asked attribute changed, and was every other kept."""
    changed: list[bool] = []
    kept: list[bool] = []
    exact: list[bool] = []
    for sample, predicted in zip(samples, judge.attributes(pictures), strict=True):
        before, after = truth_of(_scene(sample.before)), truth_of(_scene(sample.after))
        changes = [name for name in after if after[name] != before.get(name)]
        changed.append(all(predicted.get(name) == after[name] for name in changes))
        others = [predicted.get(name) == after[name] for name in after if name not in changes]
        kept += others
        exact.append(changed[-1] and all(others))
    return {"changed": _share(changed), "kept": _share(kept), "exact": _share(exact)}


def _inside(samples: Sequence[Sample], pictures: Sequence[Pictures]) -> tuple[float, float]:
    """dB inside the masks: the mean over pictures, and of the error pooled over all pixels."""
    per, error, count = [], 0.0, 0
    for sample, picture in zip(samples, pictures, strict=True):
        assert sample.mask is not None
        per.append(metrics.psnr_inside(picture, sample.truth, sample.mask))
        inside = sample.mask > 0
        error += float(((metrics.unit(picture) - metrics.unit(sample.truth))[inside] ** 2).sum())
        count += 3 * int(inside.sum())
    return float(np.mean(per)), metrics.decibel(error / count)


def removal(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """Error inside the object against the truth, beside two fills that need no model; and whether the judge sees it gone."""
    inputs = [(s.image, s.mask) for s in samples if s.image is not None and s.mask is not None]
    rows = {
        "inside": list(pictures),
        "nearest": [metrics.nearest_fill(image, mask) for image, mask in inputs],
        "ring": [metrics.ring_fill(image, mask) for image, mask in inputs],
    }
    scores: Scores = {}
    for name, filled in rows.items():
        scores[f"{name}_db"], scores[f"{name}_pooled_db"] = _inside(samples, filled)
    scores["gain_db"] = scores["inside_db"] - max(scores["nearest_db"], scores["ring_db"])
    scores["gain_pooled_db"] = scores["inside_pooled_db"] - max(scores["nearest_pooled_db"], scores["ring_pooled_db"])
    gone = []
    for sample, predicted in zip(samples, judge.attributes(pictures), strict=True):
        after = truth_of(_scene(sample.after))
        empty = [f"{place}.kind" for place in world.PLACES if after[f"{place}.kind"] == NONE]
        gone.append(all(predicted.get(name) == NONE for name in empty))
    scores["gone"] = _share(gone)
    return scores


def sketch(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """Edges within 2 px of the ink, with the control: the same drawings against another sample's picture."""
    drawings = [sample.image for sample in samples if sample.image is not None]
    agreements = [metrics.edge_agreement(picture, drawing) for picture, drawing in zip(pictures, drawings, strict=True)]
    control = [metrics.edge_agreement(picture, drawing) for picture, drawing in zip(np.roll(pictures, 1, axis=0), drawings, strict=True)]
    words = text_to_image(samples, pictures, judge)
    return {
        "edges": float(np.mean(agreements)),
        "edges_control": float(np.mean(control)),
        **{k: words[k] for k in ("sky", "ground", "kind_colour")},
    }


def sticker(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """White outline and flat ground by pixel test; the right object by the judge."""
    right = []
    for sample, predicted in zip(samples, judge.attributes(pictures), strict=True):
        toy = _scene(sample.before).toys[int(sample.detail)]
        right.append(predicted.get(f"{toy.place}.kind") == toy.kind and predicted.get(f"{toy.place}.colour") == toy.colour)
    return {"outline": _share([metrics.is_sticker(picture) for picture in reduced(pictures)]), "object": _share(right)}


def has_style_ground(picture: Pictures, style: str) -> bool:
    """Pixel test of a style: the picture's upper corners have its background colour."""
    return bool(np.linalg.norm(metrics.corner_colour(picture) - np.asarray(STYLE_GROUND[style]) / 255) < STYLE_DISTANCE)


def portrait(samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """Was the asked style applied (judge and background both), and was the face kept (mean over its four attributes)."""
    styled: list[bool] = []
    face: dict[str, list[bool]] = {name: [] for name in FACE}
    for sample, picture, predicted in zip(samples, pictures, judge.attributes(pictures), strict=True):
        assert isinstance(sample.after, Portrait)
        truth = truth_of(sample.after, sample.detail)
        styled.append(predicted.get("style") == sample.detail and has_style_ground(picture, sample.detail))
        for name in FACE:
            face[name].append(predicted.get(name) == truth[name])
    shares = {name: _share(values) for name, values in face.items()}
    return {"style": _share(styled), "face": float(np.mean(list(shares.values()))), **shares}


SCORERS: dict[str, Callable[[Sequence[Sample], Pictures, Judge], Scores]] = {
    "text-to-image": text_to_image,
    "transform": transform,
    "removal": removal,
    "sketch": sketch,
    "sticker": sticker,
    "portrait": portrait,
    FEW_STEPS: text_to_image,
}


def score(task: str, samples: Sequence[Sample], pictures: Pictures, judge: Judge) -> Scores:
    """All scores of one task, with PSNR and SSIM against the truth.

    Args:
        pictures: uint8 `(N, S, S, 3)`, one per sample.
    """
    scores = SCORERS[task](samples, pictures, judge)
    scores["truth_psnr_db"] = float(np.mean([metrics.psnr(p, s.truth) for p, s in zip(pictures, samples, strict=True)]))
    scores["truth_ssim"] = float(np.mean([metrics.ssim(p, s.truth) for p, s in zip(pictures, samples, strict=True)]))
    return scores
