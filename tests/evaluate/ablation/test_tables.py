"""Paired comparisons: only what both rows have, sample by sample, with an interval that knows how sure it is."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quad.evaluate.ablation.plan import ROWS
from quad.evaluate.ablation.results import AblatedTask, AblationResult
from quad.evaluate.ablation.tables import SECTIONS, gained, paired_table, paired_tables, rows_table
from quad.evaluate.page.table import Cell

LORA = next(section for section in SECTIONS if section.title.startswith("LoRA"))


def task(name: str, each: list[float]) -> AblatedTask:
    gain = None if name == "base" else 1.0
    return AblatedTask(
        n=len(each), psnr=float(np.mean(each)), ssim=0.9, lpips_toy=0.1, fd_toy=1.0, sim_image=1.0, structure=0.0,
        psnr_each=each, effect_gain=gain, effect_sqnr_db=None,
    )  # fmt: skip


def row(name: str, psnr: dict[str, list[float]]) -> AblationResult:
    tasks = {name: task(name, each) for name, each in psnr.items()}
    mean = float(np.mean([entry.psnr for entry in tasks.values()]))
    return AblationResult(
        name=name, group="lora", a8_fraction=0.0, lora_bits=16, psnr=mean, psnr_min=mean, ssim=0.9, lpips_toy=0.1, fd_toy=1.0,
        effect_gain=None, effect_sqnr_db=None, lora_rom_bytes=1, unet_ms=1.0, profile={"mode": "anchor"}, alignment={}, tasks=tasks,
        seconds=1.0,
    )  # fmt: skip


def test_a_steady_gain_is_certain_and_a_wavering_one_is_not() -> None:
    rng = np.random.default_rng(0)
    spread = 40 + 10 * rng.normal(size=64)
    mean, low, high = gained(list(spread + 0.1), list(spread))
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    noisy = spread + 0.1 + 5 * rng.normal(size=64)
    mean, low, high = gained(list(noisy), list(spread))
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(noisy - spread) / 8, rel=0.2)


def test_a_loss_beyond_the_bar_is_marked_and_a_task_that_no_pair_has_is_left_out() -> None:
    rows = [row("w8a16", {"sketch": [50.0, 51.0], "removal": [60.0, 61.0]}),
            row("lora-8", {"sketch": [49.8, 50.8], "removal": [59.0, 60.0], "base": [40.0]})]  # fmt: skip
    table = paired_table(LORA, rows)
    assert table is not None
    cells = {row.name: row.cells for row in table.rows}
    assert {name: row_cells[0].passed for name, row_cells in cells.items()} == {"sketch": True, "removal": False}
    assert table.columns == ("w8a16",)


def test_what_has_no_adapter_is_not_judged() -> None:
    table = paired_table(LORA, [row("w8a16", {"base": [50.0, 51.0]}), row("lora-8", {"base": [40.0, 41.0]})])
    assert table is not None
    assert table.rows[0].cells == (Cell("+10.00 dB"),)


def test_no_pair_no_table() -> None:
    assert paired_tables([row("w8a16", {"sketch": [50.0]})]) == ()


def test_every_comparison_is_of_rows_in_the_plan() -> None:
    names = {row.name for row in ROWS}
    assert {name for section in SECTIONS for pair in section.comparisons for name in (pair.better, pair.worse)} <= names


def test_a_bar_is_for_the_worst_task() -> None:
    poor = msgspec.structs.replace(row("w8a16", {"sketch": [50.0], "removal": [30.0]}), psnr_min=30.0)
    assert rows_table([poor], {}).rows[0].cells[0].passed is False
