"""For all tests: no network, one thread where a library asks, and no deadlines that a busy machine could miss."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Beside other workers a second thread only waits for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

settings.register_profile("quad", deadline=None, derandomize=True)
settings.load_profile("quad")


DISK = 1 << 30  # bytes: the tests write 0.2 GB at a time, and what builds write beside


def pytest_sessionstart() -> None:
    """A full disk fails thousands of tests, each with another words; this says it once."""
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < DISK:
        pytest.exit(f"{place}: expected 1 GB of free disk, found {free / 1e9:.1f} GB: free some, or point TMPDIR elsewhere", returncode=4)


def pytest_collection_finish() -> None:
    """What collection imports lives to the end: the garbage collector need not walk its millions of objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # a trace by torch makes millions of objects and drops few of them in circles


@pytest.fixture(scope="session", autouse=True)
def shared_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Equal networks are exported once for all workers, where any test exports at all."""
    if "quad.compile.export" not in sys.modules:
        yield
        return
    from tests.exports import sharing  # imports torch
    from tests.launcher import TRACES

    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "exports"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quad.compile.export.traced", sharing(folder))
        patch.setenv(TRACES, str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def command_tree() -> Iterator[None]:
    """typer makes the tree of all verbs and options anew for every call: 15 ms, a thousand times over."""
    if "typer.testing" not in sys.modules:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(sys.modules["typer.main"].get_command))
        yield


class Spy(Protocol):
    def __call__(self, owner: object, name: str, record: Callable[..., Any] = ..., into: list[Any] | None = None) -> list[Any]: ...


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Watch calls of a function or method, which go on to do what they did.

    Returns:
        A function of the owner (module, class or object), the attribute's name, `record` of the call's arguments (the positional ones by
        default) and the list that records go `into`; it returns that list.
    """

    def watch(owner: object, name: str, record: Callable[..., Any] = lambda *args, **_: args, into: list[Any] | None = None) -> list[Any]:
        records: list[Any] = [] if into is None else into
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            records.append(record(*args, **kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)
        return records

    return watch
