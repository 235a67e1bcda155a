"""The rows of `quad ablate --json` and of `rows.json`: one struct for each of their parts (docs/formats.md)."""

from __future__ import annotations

from typing import Any

import msgspec

from quad.evaluate.figures.evaluation import PairFigures


class AblatedTask(PairFigures, frozen=True, kw_only=True):
    """One task on a row's bundle, against FP32 pictures from the same noise.

    Args:
        psnr_each: dB of every picture.
        effect_gain, effect_sqnr_db: of its adapter at the U-Net's output; None where it has none.
    """

    n: int
    psnr_each: list[float]
    effect_gain: float | None
    effect_sqnr_db: float | None


class LaterFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A later adapter at one strength, by single U-Net calls.

    Args:
        admitted: by `quad adapt`, with the base where the adapter needs it.
        reason: of a refusal.
        output_db: SQNR of the output with the adapter, dB.
        effect_gain, effect_sqnr_db: of what the adapter changes.
        applied: share of the file's update that its conversion and the slots' ranks keep.
        lost: largest share of an activation's energy that its range cuts off, in the admission's calls.
        headroom: largest weight that the admission grants.
    """

    admitted: bool
    reason: str = ""
    output_db: float | None = None
    effect_gain: float | None = None
    effect_sqnr_db: float | None = None
    applied: float | None = None
    lost: float | None = None
    headroom: float | None = None


LaterTable = dict[str, dict[str, LaterFigures]]  # adapter -> strength -> figures


class AblationResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row, measured; figures are means over tasks.

    Args:
        a8_fraction: share of the U-Net's activation sites at 8 bits, in [0, 1].
        psnr_min: of the worst task, dB.
        effect_gain, effect_sqnr_db: means over tasks that have an adapter.
        unet_ms: median of one U-Net call.
        profile, alignment: as `quad build --json` has them; of a row of many builds `{"mode": "own"}` and all alignments.
        tasks: those of one build for each adapter only where a task names an adapter.
        seconds: that the row took.
        later: later adapters -> strength -> their figures; empty where the row asks for none.
    """

    name: str
    group: str
    a8_fraction: float
    lora_bits: int
    psnr: float
    ssim: float
    lpips_toy: float
    fd_toy: float
    effect_gain: float | None
    effect_sqnr_db: float | None
    psnr_min: float
    lora_rom_bytes: int
    unet_ms: float
    profile: dict[str, Any]
    alignment: dict[str, Any]
    tasks: dict[str, AblatedTask]
    seconds: float
    later: LaterTable = {}


class StoredRow(AblationResult, frozen=True, kw_only=True):
    """A row of `rows.json`; `key` is the digest of everything that its figures depend on."""

    key: str


class StoredRows(msgspec.Struct, frozen=True):
    """The whole of `rows.json`."""

    rows: list[StoredRow]


class CrossTableResult(msgspec.Struct, frozen=True, kw_only=True):
    """The damage of adapter i under the encodings of j.

    Args:
        names: the adapters, in the order of rows and columns.
        scores: paired-Gaussian QSS, row i column j.
        best: the adapter whose encodings leave the worst-served one best off.
        one_serves_all: some column does no adapter much more damage than its own encodings do.
        key: digest of everything that the scores depend on.
    """

    names: list[str]
    scores: list[list[float]]
    best: str
    one_serves_all: bool
    key: str


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """`ablate.json`; a cross table is None where no row asks for it, or there is one adapter only.

    Args:
        n: held-out samples a task.
        cross_table: of the adapters.
        cross_table_hard: of these and a synthetic one.
    """

    n: int
    rows: list[AblationResult]
    cross_table: CrossTableResult | None
    cross_table_hard: CrossTableResult | None
