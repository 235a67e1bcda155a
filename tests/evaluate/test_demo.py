"""The whole demo on the tiny model: every file, every field that checks read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quad.evaluate.demo import SHARES
from quad.evaluate.demo_run import DemoPaths, demo
from quad.evaluate.figures.quality import find_adapters
from quad.evaluate.page.profile_table import QUAD_SECONDS, profile_table, quad_seconds
from quad.evaluate.page.summary import DemoResult
from quad.zoo.samples import TASKS

N = 2


@pytest.fixture(scope="module")
def done(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, list[tuple[str, float]]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    seen: list[tuple[str, float]] = []
    paths = DemoPaths(model_dir, find_adapters(model_dir), out)
    measured = demo(paths, N, lambda stage, _, share: seen.append((stage, share)))
    return measured, out, seen


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_everything_is_written(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    _, out, _ = done
    assert {"bundle", "report.html", "build.json", "eval.json", "bench.json", "pictures"} == {path.name for path in out.iterdir()}
    assert (out / "bundle" / "bundle.json").is_file()
    assert {path.name for path in (out / "pictures").iterdir()} == set(TASKS)
    assert len(list((out / "pictures" / "removal").glob("*.png"))) == 6 * N


def test_the_json_has_what_checks_read(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    _, out, _ = done
    build, evaluation, bench = (_read(out / f"{name}.json") for name in ("build", "eval", "bench"))
    assert {"bundle", "seconds", "peak_ram_bytes", "profile", "placement"} <= set(build)
    assert set(evaluation["tasks"]) == set(TASKS)
    for entry in evaluation["tasks"].values():
        wanted = {"n", "psnr", "ssim", "lpips_toy", "fd_toy", "sim_d", "sim_image", "structure", "truth", "seed_control"}
        assert wanted <= set(entry)
        assert {"psnr", "fd_toy"} <= set(entry["seed_control"])
        assert set(entry["truth"]) == {"fp", "quantized"}
    assert set(bench["components"]) == {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    assert set(bench["end_to_end_ms"]) == set(TASKS)
    assert {"warm_ms", "cold_ms"} <= set(bench["switch"])
    assert set(bench["rom_bytes"]["adapters"]) == set(build["adapters"])
    assert bench["rom_bytes"]["shared"] > 0
    assert bench["peak_ram_bytes"] > 0


def test_pairs_are_pairs(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    _, out, _ = done
    for entry in _read(out / "eval.json")["tasks"].values():
        assert entry["psnr"] > entry["seed_control"]["psnr"] + 10


def test_the_laws_hold(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    laws = done[0].laws
    assert laws.switching == {"a_b_a": True, "base_after_unload": True}
    assert max(laws.slotted.values()) <= 1e-4
    assert laws.runtime_import.heavy == []


def test_the_page_names_every_task_and_what_random_weights_miss(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    assert all(f'<section id="{task}">' in page for task in TASKS)
    assert "missed" in page


def test_the_page_says_how_the_profile_was_made(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    page, build = (done[1] / "report.html").read_text(encoding="utf-8"), done[0].build
    assert "How the one profile was made" in page
    assert build["profile"]["reason"] in page
    table = profile_table(build)
    assert table is not None
    *adapters, total = table.rows
    assert [row.name for row in adapters] == build["profile"]["ranking"]
    assert {len(row.cells) for row in adapters} == {len(table.columns)}
    assert total.cells[0].passed is (quad_seconds(build) <= QUAD_SECONDS)


def test_progress_goes_forward(done: tuple[DemoResult, Path, list[tuple[str, float]]]) -> None:
    order = list(SHARES)
    places = [order.index(stage) + share for stage, share in done[2]]
    assert places == sorted(places)
    assert places[-1] == pytest.approx(len(order))
