"""Timing arithmetic, a peak of memory that is this process's own, and the whole bench on the tiny bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.core.errors import InputError, QuadError, RefusedError, UsageError
from quad.core.memory import peak_ram_bytes, reset_peak
from quad.evaluate.bench.bench import BenchOptions, bench
from quad.evaluate.bench.footprint import separate_bytes
from quad.evaluate.bench.page import make_page
from quad.evaluate.bench.process import measure
from quad.evaluate.bench.results import BenchResult, CallTimes, MemoryPlanCosts, SeparateBytes, Switching
from quad.evaluate.bench.switching import bench_resident, flatness
from quad.evaluate.bench.tables import memory_table, tables
from quad.evaluate.bench.timing import median_p95, milliseconds
from quad.evaluate.page.table import text_lines
from quad.runtime.pipeline import QuadPipeline

Told = list[tuple[str, float]]


@pytest.fixture(scope="module")
def told() -> Told:
    return []


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, told: Told) -> BenchResult:
    return measure(BenchOptions(path=tiny_bundle, engine="ort", threads=1, repeats=3), lambda stage, share: told.append((stage, share)))


@pytest.fixture(scope="module")
def found(measured: BenchResult) -> dict[str, Any]:
    """The object of `--json`."""
    return msgspec.to_builtins(measured)


def test_warm_up_calls_run_but_do_not_count() -> None:
    calls: list[int] = []
    times = milliseconds(lambda: calls.append(1), repeats=5, warm_up=2)
    assert len(calls) == 7
    assert len(times) == 5
    assert min(times) >= 0


def test_median_and_tail() -> None:
    times = median_p95([float(i) for i in range(1, 102)])
    assert times.median_ms == 51
    assert times.p95_ms == pytest.approx(96)


def test_peak_ram_of_a_child_is_not_its_parents() -> None:
    ballast = np.ones(80_000_000)
    code = "from quad.core.memory import peak_ram_bytes; print(peak_ram_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_ram_bytes() >= ballast.nbytes
    assert 1_000_000 < child < ballast.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system keeps its peak")
def test_a_forgotten_peak_is_what_is_there_now() -> None:
    ballast = np.ones(40_000_000)
    high, size = peak_ram_bytes(), ballast.nbytes
    del ballast
    reset_peak()
    assert peak_ram_bytes() < high - size // 2


def test_separate_binaries_grow_by_a_graph_and_ours_by_an_adapter() -> None:
    rows = {row.adapters: row for row in separate_bytes(1400, 1000, {"a": 100, "b": 140}, (1, 10))}
    assert list(rows) == [1, 2, 10]
    assert rows[10] == SeparateBytes(adapters=10, one_for_all=2600, separate=14000, separate_unet=10400, ratio=14000 / 2600, ratio_unet=4.0)
    assert rows[1].separate == rows[1].separate_unet == 1400
    assert separate_bytes(1400, 1000, {}) == []


def test_the_json_has_what_checks_read(found: dict[str, Any], tiny_bundle: Path) -> None:
    tasks, adapters = {"text-to-image", "transform", "removal", "sketch"}, {"transform", "removal", "sketch"}
    assert (found["engine"], found["threads"]) == ("ort", 1)
    assert set(found["components"]) == {"unet", "text_encoder", "vae_encoder", "vae_decoder"}
    assert all(0 < times["median_ms"] <= times["p95_ms"] for times in found["components"].values())
    assert set(found["end_to_end_ms"]) == set(found["tasks"]) == tasks
    assert all(found["end_to_end_ms"][task] == entry["end_to_end_ms"] > 0 for task, entry in found["tasks"].items())
    assert found["tasks"]["text-to-image"]["vae_encoder_ms"] is None
    assert 0 < found["switch"]["warm_ms"] < found["switch"]["cold_ms"]
    assert list(found["switch"]["resident"]) == ["1", "2", "10", "100"]
    assert found["switch"]["flatness"] >= 1
    sizes = {file.relative_to(tiny_bundle).parts[0]: 0 for file in tiny_bundle.rglob("*")}
    for file in tiny_bundle.rglob("*"):
        sizes[file.relative_to(tiny_bundle).parts[0]] += file.stat().st_size if file.is_file() and file.name != "bundle.json" else 0
    assert found["rom_bytes"]["shared"] == sum(sizes.values()) - sizes["adapters"]
    assert sum(found["rom_bytes"]["adapters"].values()) == sizes["adapters"]
    assert found["rom_bytes"]["components"]["unet"] == sizes["unet"]
    assert set(found["rom_bytes"]["adapters"]) == adapters
    assert found["peak_ram_bytes"] >= max(entry["peak_ram_bytes"] for entry in found["tasks"].values()) > 1_000_000
    assert {"cpu", "cores", "usable_cores", "threads", "system", "versions"} <= set(found["machine"])
    assert {"python", "numpy", "onnxruntime"} <= set(found["machine"]["versions"])


def test_stages_are_told_from_the_other_process(found: dict[str, Any], told: Told) -> None:
    stages, shares = zip(*told, strict=True)
    plans = ("memory keep-all", "memory balanced", "memory minimal")
    assert stages == ("open", "switch", *found["tasks"], "resident adapters", "components", *plans)
    assert list(shares) == sorted(shares)
    assert shares[-1] < 1


def test_each_memory_plan_has_a_peak_of_its_own(found: dict[str, Any]) -> None:
    plans = found["memory"]
    assert list(plans) == ["keep-all", "balanced", "minimal"]
    for entry in plans.values():
        assert entry["peak_ram_bytes"] > 1_000_000
        assert min(entry[key] for key in ("open_ms", "first_ms", "next_ms")) > 0
        assert entry["task"] in ("transform", "removal", "sketch")  # they read a picture: every graph is used


def test_a_plan_that_spares_too_little_is_told() -> None:
    costs = MemoryPlanCosts(peak_ram_bytes=100_000_000, open_ms=1.0, first_ms=2.0, next_ms=3.0, task="removal")
    for peak, passed in ((60_000_000, True), (80_000_000, False)):
        table = memory_table({"keep-all": costs, "minimal": msgspec.structs.replace(costs, peak_ram_bytes=peak)})
        assert [cell.passed for cell in table.rows[1].cells] == [None, passed, None, None, None]
        assert ("(bar ≥ 30 %)" in text_lines(table)[3]) is not passed


def test_the_measuring_process_is_the_runtime_alone() -> None:
    code = "import sys, quad.evaluate.bench.bench; print({'torch', 'diffusers', 'transformers', 'onnx', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_only_the_tasks_asked_for(tiny_bundle: Path) -> None:
    assert list(bench(BenchOptions(path=tiny_bundle, engine="ort", threads=1, repeats=1, tasks=("removal",))).tasks) == ["removal"]


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"tasks": ("paint",)}, UsageError, "--task: expected one of removal, sketch, text-to-image, transform, found 'paint'"),
        ({"engine": "qnn"}, RefusedError, "expected ort or openvino, which this bundle was built for, found qnn"),
        ({"path": Path("nowhere")}, QuadError, "nowhere: expected a bundle directory"),
    ],
)
def test_errors_come_out_of_the_other_process(changes: dict[str, Any], kind: type[QuadError], says: str, tiny_bundle: Path) -> None:
    with pytest.raises(kind, match=says) as caught:
        measure(BenchOptions(**{"path": tiny_bundle, **changes}), lambda stage, share: None)
    assert "\n" not in str(caught.value)
    with pytest.raises(QuadError) as own:
        bench(BenchOptions(**{"path": tiny_bundle, **changes}))
    assert str(own.value) == str(caught.value)
    assert own.value.exit_code == caught.value.exit_code
    assert isinstance(own.value, InputError | RefusedError)


def test_resident_adapters_come_and_go(tiny_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
    resident = bench_resident(pipe, (1, 5))
    assert list(resident) == ["1", "5"]
    assert set(pipe.adapters) == {"transform", "removal", "sketch"}
    assert pipe.get_active_adapters() == []
    assert flatness({"1": CallTimes(2.0, 2.0), "5": CallTimes(3.0, 3.0)}) == 1.5
    assert flatness({"1": CallTimes(2.0, 2.0)}) is None


def test_tables_have_the_papers_rows(measured: BenchResult) -> None:
    tasks, *others = tables(measured)
    assert tasks.columns == tuple(measured.tasks)
    wanted = ["Sampler", "Steps", "VAE encoder (ms)", "U-Net, one step (ms)", "VAE decoder (ms)", "End to end (ms)"]
    rows = {row.name: row for row in tasks.rows}
    assert {*wanted, "Shared FM ROM (MB)", "LoRA ROM (MB)", "Peak RAM (MB)"} <= set(rows)
    column = tasks.columns.index("text-to-image")
    assert rows["VAE encoder (ms)"].cells[column].text == rows["LoRA ROM (MB)"].cells[column].text == "NA"
    for table in (tasks, *others):
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
        lines = text_lines(table)
        assert lines[0] == table.title
        assert [line.split("  ")[0] for line in lines[2:-1]] == [row.name for row in table.rows]


def test_the_page_holds_every_table_and_the_machine(measured: BenchResult) -> None:
    page = make_page(measured)
    assert all(f"<h2>{title}</h2>" in page for title in ("Graphs", "Switching the adapter", "At a glance"))
    assert page.count("<svg") == 3
    assert measured.machine.cpu in page
    assert "<script" not in page
    assert "show single pixels" not in page


def test_a_bundle_without_adapters_is_measured_too(measured: BenchResult) -> None:
    """Text to image alone: nothing to switch, nothing to save."""
    bare = msgspec.structs.replace(
        measured,
        tasks={"text-to-image": measured.tasks["text-to-image"]},
        end_to_end_ms={"text-to-image": 1.0},
        switch=Switching(warm_ms=0.0, cold_ms=0.0, warm_p95_ms=0.0, resident={}, flatness=None),
        rom_bytes=msgspec.structs.replace(measured.rom_bytes, adapters={}, separate=[]),
    )
    assert "ROM: one for all" not in make_page(bare)
    assert len(tables(bare)) == 4
