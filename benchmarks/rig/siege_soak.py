"""Many clients on one server for long, an adapter installed again and again meanwhile: every picture compared, memory watched."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np
from PIL import Image

from quad import QuadPipeline
from quad.core.errors import BusyError
from tests.runtime.conftest import adapter_manifest, adapter_tensors
from tests.serve.device import install_pack
from tests.serve.process import ServerProcess

PROCESSES, THREADS = 4, 8
SEEDS = 8
_EVERY_S, _INSTALL_EVERY = 1.0, 2
_CLIENTS = "from benchmarks.rig.siege_soak import clients; clients()"


def wishes() -> list[dict[str, Any]]:
    """The pictures that clients ask for, by the names of the pipeline."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (20, 24, 3)).astype(np.uint8)) for _ in range(SEEDS)]
    plain = [{"prompt": "make it night", "task": "text-to-image", "seed": seed} for seed in range(SEEDS)]
    edits = [{"prompt": "make it night", "task": "transform", "seed": seed, "image": pictures[seed]} for seed in range(SEEDS)]
    return plain + edits


def digest(picture: Image.Image) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def clients() -> None:
    """A process of clients: its arguments on stdin, `right`, `wrong` and `lost` on stdout."""
    from concurrent.futures import ThreadPoolExecutor

    from quad.serve import QuadClient

    facts = json.loads(sys.stdin.readline())
    counts: Counter[str] = Counter()

    def one(number: int) -> None:
        client, draw, asked = QuadClient(facts["address"], timeout_s=300), np.random.default_rng(number), wishes()
        for _ in range(facts["pictures"]):
            index, installed = int(draw.integers(len(asked))), bool(draw.integers(2))
            client.set_adapters("ink") if installed else client.disable_lora()
            counts[_outcome(client, asked[index], facts["expected"][installed][index])] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(facts["first"], facts["first"] + THREADS)))
    print(json.dumps(counts))


def _outcome(client: Any, wish: dict[str, Any], expected: str) -> str:
    while True:
        try:
            return "right" if digest(client(**wish).images[0]) == expected else "wrong"
        except BusyError:
            sleep(0.05)
        except Exception as error:  # whatever became of it, it is no picture
            print(f"lost: {error!r}", file=sys.stderr)
            return "lost"


def soak(bundle: Path, folder: Path, pictures: int) -> dict[str, Any]:
    """About so many pictures by 32 clients."""
    store, pack = folder / "store", (adapter_manifest("ink", 2), adapter_tensors(9, 2))
    store.mkdir()
    path = install_pack(store, "ink", pack, 1)
    expected = _expected(bundle, path)
    share = max(1, pictures // (PROCESSES * THREADS))
    with ServerProcess(bundle, "--socket", str(folder / "s"), "--store", str(store)) as server:
        begin, installs = perf_counter(), 1
        crowd = [_start(folder / "s", share, expected, number) for number in range(PROCESSES)]
        resident: list[int] = []
        while any(process.poll() is None for process in crowd):
            resident.append(server.resident_bytes())
            sleep(_EVERY_S)
            if len(resident) % _INSTALL_EVERY == 0:
                installs += 1
                install_pack(store, "ink", pack, installs)
        seconds = perf_counter() - begin
        code, said = server.stop()
    counts: Counter[str] = Counter()
    for process in crowd:
        counts.update(json.loads(process.communicate()[0] or "{}"))
    half = resident[len(resident) // 2 :]
    tenth = max(1, len(half) // 5)
    return {
        "pictures": share * PROCESSES * THREADS,
        "right": counts["right"],
        "wrong": counts["wrong"],
        "lost": share * PROCESSES * THREADS - counts["right"] - counts["wrong"],
        "seconds": seconds,
        "installs": installs,
        "growth": median(half[-tenth:]) / median(half[:tenth]),
        "resident_mb": [n_bytes // 10**6 for n_bytes in resident[:: max(1, len(resident) // 20)]],
        "exit_code": code,
        "stderr": said,
    }


def _expected(bundle: Path, pack: Path) -> list[list[str]]:
    pipe = QuadPipeline.from_pretrained(bundle, threads=1)
    pipe.load_lora_weights(pack, "ink")
    digests = []
    for chosen in (pipe.disable_lora, lambda: pipe.set_adapters("ink")):
        chosen()
        digests.append([digest(pipe(**wish).images[0]) for wish in wishes()])
    return digests


def _start(address: Path, share: int, expected: list[list[str]], number: int) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _CLIENTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    facts = {"address": str(address), "pictures": share, "expected": expected, "first": number * THREADS}
    process.stdin.write(json.dumps(facts) + "\n")
    process.stdin.flush()
    return process
