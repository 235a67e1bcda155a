"""Paired figures: the FP32 picture against the bundle's picture of the same input and the same noise. Source: docs/method.md section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.evaluate.figures import features, metrics
from quad.evaluate.figures.evaluation import PairedTask, PairFigures, TruthFigures
from quad.zoo.judge import Judge
from quad.zoo.samples import Sample

Pictures = NDArray[np.uint8]
STRUCTURE_LEVEL = -1


def _mean(values: NDArray[np.float64] | list[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class PictureFeatures:
    """Pictures `(N, S, S, 3)` with the judge's features of them: maps `(N, C, h, w)` by level, embedding `(N, D)`."""

    pictures: Pictures
    maps: Sequence[NDArray[np.float32]]
    embedding: NDArray[np.float32]


def extract(pictures: Pictures, judge: Judge) -> PictureFeatures:
    """Features of some pictures, computed once for all pairs they are in."""
    maps, embedding = judge.features(pictures)
    return PictureFeatures(pictures, maps, embedding)


def pair_figures(a: PictureFeatures, b: PictureFeatures) -> PairFigures:
    """The figures of two picture sets of one length; per picture, then the mean."""
    both = list(zip(a.pictures, b.pictures, strict=True))
    return PairFigures(
        psnr=_mean([metrics.psnr(x, y) for x, y in both]),
        ssim=_mean([metrics.ssim(x, y) for x, y in both]),
        lpips_toy=_mean(features.lpips(a.maps, b.maps)),
        fd_toy=features.frechet(a.embedding, b.embedding),
        sim_image=_mean(features.cosine(b.embedding, a.embedding)),
        structure=_mean(features.structure(a.maps[STRUCTURE_LEVEL], b.maps[STRUCTURE_LEVEL])),
    )


def paired_task(samples: Sequence[Sample], fp: Pictures, quantized: Pictures, other_seed: Pictures, judge: Judge) -> PairedTask:
    """One task's pairs, as `eval.json` has them.

    Args:
        fp, quantized: pictures of the same samples from the same noise.
        other_seed: FP32 pictures from other noise: what two honest runs differ by.
    """
    reference, bundle, control = (extract(pictures, judge) for pictures in (fp, quantized, other_seed))
    truth = extract(np.stack([sample.truth for sample in samples]), judge)
    sources = [sample.image for sample in samples if sample.image is not None]
    sim_d = None
    if len(sources) == len(samples):
        sim_d = _mean(features.direction(judge.features(np.stack(sources))[1], reference.embedding, bundle.embedding))
    pairs = msgspec.structs.replace(pair_figures(reference, bundle), n=len(samples))
    return PairedTask(
        **msgspec.structs.asdict(pairs),
        sim_d=sim_d,
        psnr_min=min(metrics.psnr(a, b) for a, b in zip(fp, quantized, strict=True)),
        truth=TruthFigures(fp=pair_figures(truth, reference), quantized=pair_figures(truth, bundle)),
        seed_control=pair_figures(reference, control),
    )
