"""Paired figures: the FP32 picture against the bundle's picture of the same input and the same noise. Source: docs/method.md section 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.evaluate.figures import features, metrics
from quad.zoo.judge import Judge
from quad.zoo.samples import Sample

Pictures = NDArray[np.uint8]
STRUCTURE_LEVEL = -1


def _mean(values: NDArray[np.float64] | list[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class Seen:
    """Pictures `(N, 64, 64, 3)` with the judge's features of them: maps `(N, C, h, w)` by level, embedding `(N, D)`."""

    pictures: Pictures
    maps: Sequence[NDArray[np.float32]]
    flat: NDArray[np.float32]


def see(pictures: Pictures, judge: Judge) -> Seen:
    """Features of some pictures, computed once for all pairs they are in."""
    maps, flat = judge.features(pictures)
    return Seen(pictures, maps, flat)


def pair_figures(a: Seen, b: Seen) -> dict[str, float]:
    """PSNR (dB), SSIM, LPIPS-toy, FD-toy, sim_image and structure loss of two picture sets; per picture, then the mean."""
    both = list(zip(a.pictures, b.pictures, strict=True))
    return {
        "psnr": _mean([metrics.psnr(x, y) for x, y in both]),
        "ssim": _mean([metrics.ssim(x, y) for x, y in both]),
        "lpips_toy": _mean(features.lpips(a.maps, b.maps)),
        "fd_toy": features.frechet(a.flat, b.flat),
        "sim_image": _mean(features.cosine(b.flat, a.flat)),
        "structure": _mean(features.structure(a.maps[STRUCTURE_LEVEL], b.maps[STRUCTURE_LEVEL])),
    }


def paired_task(samples: Sequence[Sample], fp: Pictures, quantized: Pictures, other_seed: Pictures, judge: Judge) -> dict[str, Any]:
    """One task's entry of `eval.json` (docs/formats.md); `sim_d` is None where the task reads no picture.

    Args:
        fp, quantized: pictures of the same samples from the same noise.
        other_seed: FP32 pictures from other noise: what two honest runs differ by.
    """
    one, two, control = (see(pictures, judge) for pictures in (fp, quantized, other_seed))
    truth = see(np.stack([sample.truth for sample in samples]), judge)
    sources = [sample.image for sample in samples if sample.image is not None]
    sim_d = None
    if len(sources) == len(samples):
        sim_d = _mean(features.direction(judge.features(np.stack(sources))[1], one.flat, two.flat))
    return {
        "n": len(samples),
        **pair_figures(one, two),
        "sim_d": sim_d,
        "psnr_min": min(metrics.psnr(a, b) for a, b in zip(fp, quantized, strict=True)),
        "truth": {"fp": pair_figures(truth, one), "quantized": pair_figures(truth, two)},
        "seed_control": pair_figures(one, control),
    }
