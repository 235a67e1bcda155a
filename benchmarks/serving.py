"""Several apps on one resident model: every picture the one that the pipeline makes alone, none lost, nobody passed too often.

    python -m benchmarks.serving BUNDLE [--clients 8] [--requests 200] [--threads N] [--cache out/serving] [--json FILE]

Every client asks for the same `requests` pictures of each task, in an order and with a priority of its own, a few at a time. BUNDLE is one
of the reference model (`quad build toyland -o BUNDLE`). Then two tasks in turn against swapping merged graphs, which are built into the
cache first (minutes, once).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np
from benchmarks.rig.figures import Figure
from benchmarks.rig.merged import compare
from benchmarks.rig.merged import figures as merged_figures
from benchmarks.rig.report import command_line, print_figures, write_report

from quad.core.manifest import TaskSpec
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.queue.scheduler import Scheduler, SchedulerOptions
from quad.runtime.queue.ticket import Ticket
from quad.runtime.request import Request
from quad.runtime.stages import PipelineOutput

AT_ONCE = 6  # requests of one client in line
MOST_OVERTAKEN = 8
WORDS = ("a red house", "remove the tree", "make it night", "", "a blue car and a tree", "snow")


def requests_of(tasks: Mapping[str, TaskSpec], size: int, count: int) -> list[Request]:
    """`count` requests of each task, in few steps: prompts, pictures, masks and seeds differ."""
    requests = []
    for task, spec in tasks.items():
        for number in range(count):
            draw = np.random.default_rng(number)
            picture = draw.integers(0, 256, (size, size, 3), dtype=np.uint8) if spec.reads_picture else None
            mask = (draw.random((size, size)) < 0.2).astype(np.uint8) * 255 if spec.mask == "input" else None
            steps = None if spec.sampler.kind == "olss" else 1
            requests.append(
                Request(
                    prompt=WORDS[number % len(WORDS)], task=task, image=picture, mask_image=mask, num_inference_steps=steps, seed=number
                )
            )
    return requests


def digest(output: PipelineOutput) -> str:
    """SHA-256 of a picture's pixels."""
    return hashlib.sha256(np.asarray(output.images[0]).tobytes()).hexdigest()


def serial(path: Path, requests: Sequence[Request], threads: int | None) -> tuple[list[str], float]:
    """Digests of the pictures that a pipeline makes alone, one after the other; and the seconds."""
    pipe = QuadPipeline.from_pretrained(path, threads=threads)
    start = perf_counter()
    return [digest(pipe.finish(pipe.prepare(request))) for request in requests], perf_counter() - start


class Client(Thread):
    """One app: its own order, its own priority, `AT_ONCE` requests in line at a time."""

    def __init__(self, number: int, *, scheduler: Scheduler, requests: Sequence[Request], expected: Sequence[str]) -> None:
        super().__init__(name=f"app {number}")
        self._scheduler, self._requests, self._expected = scheduler, requests, expected
        self._order = np.random.default_rng(number).permutation(len(requests)).tolist()
        self._priority = number % 3
        self.right, self.wrong, self.lost = 0, 0, 0

    def run(self) -> None:
        line: deque[tuple[int, Ticket]] = deque()
        for index in self._order:
            line.append((index, self._scheduler.submit(self._requests[index], priority=self._priority, client=self.name)))
            if len(line) == AT_ONCE:
                self._take(*line.popleft())
        for submitted in line:
            self._take(*submitted)

    def _take(self, index: int, ticket: Ticket) -> None:
        try:
            same = digest(ticket.result()) == self._expected[index]
        except Exception:  # whatever became of it, it is no picture
            self.lost += 1
            return
        self.right, self.wrong = self.right + same, self.wrong + (not same)


def serve(path: Path, requests: Sequence[Request], expected: Sequence[str], clients: int, threads: int | None) -> dict[str, Any]:
    """All clients at once: how many pictures were right, wrong and lost, and the scheduler's metrics."""
    pipe = QuadPipeline.from_pretrained(path, threads=threads)
    with Scheduler(pipe, SchedulerOptions(max_queue=clients * AT_ONCE, most_overtaken=MOST_OVERTAKEN)) as scheduler:
        apps = [Client(number, scheduler=scheduler, requests=requests, expected=expected) for number in range(clients)]
        start = perf_counter()
        for app in apps:
            app.start()
        for app in apps:
            app.join()
        seconds, metrics = perf_counter() - start, scheduler.metrics()
    right, wrong, lost = (sum(getattr(app, name) for app in apps) for name in ("right", "wrong", "lost"))
    return {"right": right, "wrong": wrong, "lost": lost, "seconds": seconds, "scheduler": asdict(metrics)}


def figures(served: Mapping[str, Any]) -> list[Figure]:
    """Of `serve`."""
    return [
        Figure(name=f"pictures that differ from the serial run, of {served['right'] + served['wrong']}", value=served["wrong"], bar=0.0),
        Figure(name="requests lost", value=served["lost"], bar=0.0),
        Figure(name="most often that a request was passed by later ones", value=served["scheduler"]["most_overtaken"], bar=MOST_OVERTAKEN),
    ]


def main() -> int:
    """Measure and print the bars."""
    options = _options()
    pipe = QuadPipeline.from_pretrained(options.bundle)
    requests = requests_of(pipe.tasks, pipe.bundle.manifest.size, options.requests)
    del pipe
    expected, seconds = serial(options.bundle, requests, options.threads)
    report: dict[str, Any] = {"serial": {"pictures": len(requests), "seconds": seconds}}
    report["served"] = serve(options.bundle, requests, expected, options.clients, options.threads)
    shown = figures(report["served"])
    if not options.no_merged:
        report["two_tasks"] = compare(options.bundle, options.cache, options.threads)
        shown += merged_figures(report["two_tasks"])
    print_figures(shown)
    write_report(options.json, report, shown)
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200, help="of each task, for each client")
    parser.add_argument("--threads", type=int, help="of the budget, all cores by default; 1 where others use the machine too")
    parser.add_argument("--cache", type=Path, default=Path("out/serving"), help="where merged bundles are kept")
    parser.add_argument("--no-merged", action="store_true", help="serve only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
