"""The object of `quad eval --json`, `eval.json`: one struct for each of its parts (docs/formats.md)."""

from __future__ import annotations

import msgspec

Scores = dict[str, float]


class PairFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Two sets of pictures against each other; means over pictures.

    Args:
        n: how many pictures; left out where the entry around says so.
        psnr: dB.
        lpips_toy, fd_toy: the formulas of LPIPS and FID on our own classifier, not those metrics.
        sim_image: cosine of the two embeddings.
        structure: error of the self-similarities.
    """

    n: int | msgspec.UnsetType = msgspec.UNSET
    psnr: float
    ssim: float
    lpips_toy: float
    fd_toy: float
    sim_image: float
    structure: float


class TruthFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides against the rendered truth."""

    fp: PairFigures
    quantized: PairFigures


class PairedTask(PairFigures, frozen=True, kw_only=True):
    """The FP32 pictures of one task against the bundle's, of the same samples from the same noise.

    Args:
        sim_d: cosine of the two edits in feature space; None where the task reads no picture.
        psnr_min: of the worst picture, dB.
        seed_control: FP32 against FP32 from other noise: what two honest runs differ by.
    """

    n: int
    sim_d: float | None
    psnr_min: float
    truth: TruthFigures
    seed_control: PairFigures


class TaskScores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores against the truth, by name: of FP32, the bundle, and the truth itself after the VAE, which no sampler can beat."""

    fp: Scores
    quantized: Scores
    ceiling: Scores


class PictureEffect(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter's effect in `n` whole pictures."""

    n: int
    gain: float
    sqnr_db: float


class EffectFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter's effect at the U-Net's output and in pictures; None where the task has no adapter, or it was not measured.

    Args:
        effect_gain_error: standard error of the gain over the runs that it was measured on.
    """

    effect_gain: float | None
    effect_gain_error: float | None
    effect_sqnr_db: float | None
    effect_pictures: PictureEffect | None


class TaskEvaluation(PairedTask, frozen=True, kw_only=True):
    """One task's entry of `eval.json`."""

    scores: TaskScores
    effect_gain: float | None
    effect_gain_error: float | None
    effect_sqnr_db: float | None
    effect_pictures: PictureEffect | None

    @property
    def shown_gain(self) -> str:
        """The gain with its standard error, where there is one."""
        error = "" if self.effect_gain_error is None else f" ± {self.effect_gain_error:.3f}"
        return f"{self.effect_gain:.3f}{error}"


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle as its engine runs it against its full-precision model, task by task."""

    engine: str
    tasks: dict[str, TaskEvaluation]
