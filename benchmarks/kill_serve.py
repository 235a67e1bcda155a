"""Kill a server at random points of its life, while it starts, makes pictures and takes packs: the next one runs, and nothing is left.

    python -m benchmarks.kill_serve [--points 200] [--seed 0] [--json FILE]

Prints the figures, and exits with 1 where something was left or wrong.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread, Timer
from time import perf_counter
from typing import Any

import numpy as np
from benchmarks.rig.report import command_line, write_report

from quad import QuadPipeline
from quad.core.errors import QuadError
from quad.core.storage.pack import write_pack
from tests.runtime.conftest import adapter_manifest, adapter_tensors, make_bundle
from tests.serve.process import PATIENCE_S, ServerProcess, start

WORKS_S, _HALF = 1.0, 0.5
PROMPT, STEPS = "remove the car", 40
FILES = {"s", "s.lock", "s.uploads"}


@dataclass(kw_only=True)
class KillResult:
    """The state after all kills.

    Args:
        points: work of the server when it was killed -> how often.
        strays: files that a later start did not remove.
        wrong: pictures that were not the pipeline's.
        failed: stderr of servers that ended by themselves.
    """

    points: Counter[str] = field(default_factory=Counter)
    strays: list[str] = field(default_factory=list)
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    pictures: int = 0
    last_exit_code: int | None = None
    left_at_the_end: list[str] = field(default_factory=list)


class World:
    """A bundle, a pack and the picture that every server has to make of them."""

    def __init__(self, root: Path) -> None:
        self.bundle, self.pack, self.folder = make_bundle(root / "phone"), root / "ink.qpack", root / "run"
        self.folder.mkdir()
        write_pack(self.pack, adapter_manifest("ink", 2), adapter_tensors(9, 2))
        pipe = QuadPipeline.from_pretrained(self.bundle, threads=1)
        self.expected = np.asarray(pipe(PROMPT, num_inference_steps=STEPS).images[0])
        begin = perf_counter()
        with ServerProcess(self.bundle, *self.options()) as server:
            self.starts_s = perf_counter() - begin
            server.stop()

    def options(self) -> tuple[str, ...]:
        """Of `quad serve`."""
        return ("--socket", str(self.folder / "s"), "--allow-uploads")


def one_life(world: World, result: KillResult, share: float) -> None:
    """Start a server, use it without rest, kill it.

    Args:
        share: where in its life, 0 to 1: in the first half it starts, in the second it works.
    """
    process, doing, over = start(world.bundle, *world.options()), ["starting"], Event()

    def kill() -> None:
        result.points[doing[0]] += 1
        process.kill()

    timer = Timer(2 * share * world.starts_s if share < _HALF else 2 * (share - _HALF) * WORKS_S, kill)
    if share < _HALF:
        timer.start()
    user = Thread(target=_use, args=(world, result, doing, over))
    assert process.stdout is not None
    if process.stdout.readline():
        if share >= _HALF:
            timer.start()
        result.strays += sorted({path.name for path in world.folder.iterdir()} - FILES) + _uploads(world)
        user.start()
    process.wait(timeout=PATIENCE_S)
    timer.cancel()
    over.set()
    if user.ident is not None:
        user.join()
    _, stderr = process.communicate()
    if process.returncode != -signal.SIGKILL:
        result.failed.append(stderr)


def _uploads(world: World) -> list[str]:
    folder = world.folder / "s.uploads"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _use(world: World, result: KillResult, doing: list[str], over: Event) -> None:
    from quad.serve import QuadClient

    client = QuadClient(world.folder / "s")
    while not over.is_set():
        with suppress(QuadError):
            doing[0] = "a picture"
            picture = np.asarray(client(PROMPT, num_inference_steps=STEPS).images[0])
            result.pictures, result.wrong = result.pictures + 1, result.wrong + (not np.array_equal(picture, world.expected))
            doing[0] = "a pack"
            client.load_lora_weights(world.pack, "ink")


def run(points: int, number: int, root: Path) -> dict[str, Any]:
    """The whole measurement as a JSON-like object."""
    world, result, draw = World(root), KillResult(), random.Random(number)
    for count in range(points):
        one_life(world, result, draw.random())
        if count % 20 == 19:
            print(f"{count + 1} kills, {dict(result.points)}", flush=True)
    with ServerProcess(world.bundle, *world.options()) as server:
        picture = np.asarray(server.client()(PROMPT, num_inference_steps=STEPS).images[0])
        result.wrong += not np.array_equal(picture, world.expected)
        result.last_exit_code = server.stop()[0]
    result.left_at_the_end = sorted(path.name for path in world.folder.iterdir())
    return vars(result)


def main() -> int:
    """Print the figures; 1 where something was left or wrong."""
    parser = command_line(__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="q") as folder:
        facts = run(options.points, options.seed, Path(folder))
    write_report(options.json, facts)
    print(json.dumps(facts, indent=2))
    return 1 if facts["strays"] or facts["wrong"] or facts["failed"] or facts["last_exit_code"] or facts["left_at_the_end"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
