"""One input gives one bundle, byte for byte: wherever it is written, on however many threads, and of however many processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info
from typer.testing import CliRunner

import quad
from quad.build.fixed_threads import fixed_threads
from quad.cli.main import app
from quad.core.digests import file_digest
from quad.core.float_type import BF16, F32
from quad.model.device import HERE
from quad.quantize.observe import side_by_side as observe
from quad.quantize.observe.short_floats import bf16_offered

ROOT = Path(__file__).parents[2]
# `--multi_gpu` is the launcher's word for several processes, on a CPU too. Port 0 is any free one. The launcher of tests brings
# the traces of all tests: the names in a graph are those of a trace that was read.
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0",
          "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "tests.launcher", "1"]  # fmt: skip
FORK = ["tests.launcher", "2"]  # as processes of the launcher, but of one import of torch and with the traces of all tests
Command = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def command(model_dir: Path, adapter_files: dict[str, Path]) -> Command:
    """The words of one build, by its output."""
    adapters = [word for name, file in adapter_files.items() for word in ("--adapter", f"{name}={file}")]
    statistics = ["--statistics", BF16 if bf16_offered(HERE) else F32]
    rest = ["--precision", "w8a16", "--distill-steps", "2", *statistics, "--json"]
    return lambda out: ["build", str(model_dir), *adapters, "-o", str(out), *rest]


def digests(bundle: Path) -> dict[str, str]:
    return {path.relative_to(bundle).as_posix(): file_digest(path) for path in bundle.rglob("*") if path.is_file()}


def built(words: list[str], threads: int) -> dict[str, str]:
    """Every file of a bundle that this process has built, told of so many threads and cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "default_threads", lambda: threads)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            done = CliRunner().invoke(app, words)
            assert torch.get_num_threads() == threads  # as the caller had set it
        finally:
            torch.set_num_threads(before)
    assert done.exit_code == 0, done.stderr
    return digests(Path(words[words.index("-o") + 1]))


@pytest.fixture(scope="module")
def alone(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """On one thread."""
    return built(command(tmp_path_factory.mktemp("alone") / "phone"), threads=1)


def test_four_threads_build_what_one_does(alone: dict[str, str], command: Command, tmp_path: Path) -> None:
    assert len(alone) > 12
    assert built(command(tmp_path / "another-name"), threads=4) == alone


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launch", [FORK, pytest.param(LAUNCH, marks=pytest.mark.soak)], ids=["fork", "accelerate"])
def test_two_processes_of_two_threads_build_what_one_does(
    launch: list[str], alone: dict[str, str], command: Command, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(Path(next(iter(quad.__path__))).parent), str(ROOT))),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
    }
    words = [sys.executable, "-m", *launch, "quad", *command(tmp_path / "phone")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\n") == 1  # one object: the other process said nothing
    assert digests(tmp_path / "phone") == alone
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_libraries_compute_on_one_thread_and_then_as_before() -> None:
    def threads() -> dict[str, int]:
        return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

    before = threads(), torch.get_num_threads()
    with fixed_threads():
        assert set(threads().values()) == {1}
        assert torch.get_num_threads() == 1
    assert (threads(), torch.get_num_threads()) == before


def test_pieces_run_side_by_side_and_their_results_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until all have begun."""
    monkeypatch.setattr(observe, "default_threads", lambda: 3)
    together = threading.Barrier(3, timeout=60)

    def compute(piece: int) -> tuple[int, int]:
        together.wait()
        return piece, torch.get_num_threads()

    with fixed_threads():
        assert observe.side_by_side(compute, range(3)) == [(0, 1), (1, 1), (2, 1)]
