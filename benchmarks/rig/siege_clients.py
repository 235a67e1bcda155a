"""Clients of a besieged server: hostile ones, each a process of its own, and an honest one whose calls are timed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from quad.serve import QuadClient

_HOSTILE = """
import sys
from collections import Counter
from quad.core.errors import BackendError, QuadError
from quad.serve import QuadClient
from tests.serve.stand_in import SLEEPS, png
http = QuadClient(sys.argv[1], timeout_s=600)._http
print("begins", flush=True)
while True:
    try:
        http.fetch("POST", "/v1/requests", f'{{"image": "{png(SLEEPS)}"}}'.encode(), "application/json")
    except QuadError as error:
        print(type(error).__name__, flush=True)
        if isinstance(error, BackendError):
            break  # the server has gone
"""


class Apps:
    """Running hostile clients."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes = processes

    def answers(self) -> dict[str, int]:
        """Kinds of their refusals, once they have ended."""
        counts: Counter[str] = Counter()
        for process in self.processes:
            process.kill()
            counts.update(process.communicate()[0].split())  # without its first line, which was read
        return dict(counts)


@contextmanager
def hostile_apps(address: Path, count: int) -> Iterator[Apps]:
    """So many of them, from their first picture on."""
    command = [sys.executable, "-c", _HOSTILE, str(address)]
    apps = Apps([subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)])
    try:
        for process in apps.processes:
            assert process.stdout is not None
            process.stdout.readline()  # it begins
        yield apps
    finally:
        for process in apps.processes:
            process.kill()
            process.wait()


def time_calls(address: Path, count: int) -> dict[str, list[float]]:
    """Seconds of an honest client's calls by kind, in turns."""
    client = QuadClient(address)
    picture = Image.new("RGB", (16, 16), "red")
    calls: dict[str, Callable[[], object]] = {
        "GET /health": lambda: client.health,
        "GET /v1/adapters": lambda: client.adapters,
        "a picture from a picture": lambda: client("make it night", task="transform", image=picture),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            seconds[name].append(perf_counter() - begin)
    return seconds


def percentile_s(seconds: Sequence[float], share: float) -> float:
    return float(np.percentile(seconds, share))
