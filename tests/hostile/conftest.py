"""A tiny model and a tiny bundle to break, and what no input may cost: time, memory, words beside the one line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import quad.build.build
import quad.evaluate.figures.runs  # noqa: F401
from quad.model.base.open import Base, open_model
from tests.model.conftest import model_dir as model_dir
from tests.model.conftest import unet as unet
from tests.runtime.conftest import bundle_copy as bundle_copy
from tests.runtime.conftest import rewrite as rewrite
from tests.runtime.conftest import tiny_bundle as tiny_bundle

MOST_SECONDS = 20
MOST_BYTES = 128 * 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture(scope="session")
def base(model_dir: Path) -> Base:
    """The tiny model, opened; not to be changed."""
    return open_model(model_dir)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a case is written."""
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a command would write."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _memory(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(autouse=True)
def bounded(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Every case ends in time, takes little memory where the system tells it, and prints nothing past its caller."""

    def late(_signal: int, _frame: object) -> None:
        pytest.fail(f"not refused after {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS, MOST_SECONDS)  # again and again: what catches one is stopped by the next
    measured = _RESET.exists()
    if measured:
        _RESET.write_text("5")  # the peak begins anew
        start = _memory("VmRSS")
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if measured:
        assert _memory("VmHWM") - start < MOST_BYTES
    assert tuple(capfd.readouterr()) == ("", "")
