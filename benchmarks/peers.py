"""quad beside what else runs a LoRA on a CPU: the same U-Net call of Stable Diffusion 1.5's shape in each program, in turns.

    python -m benchmarks.peers [--peers quad-ort,genai,...] [--latent 32,64] [--turns N] [--envs DIR] [--json FILE] [--picture FILE]

Random weights, a LoRA of rank 16 at the 128 attention projections, batch 1. Each side is a process of its own; those of other programs run
in environments of their own, made below `--envs` from pinned lists (`rig/peers/*.txt`), and one that cannot be installed here is left out
and said so. Few are in memory at once, quad always among them, and take turns (A B C, C B A, ...): ratios are medians over rounds.
What `--json`'s file holds of sides that are not measured now stays there, so that a table may be measured in several quiet runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

import msgspec
from benchmarks.rig.peers.picture import picture
from benchmarks.rig.peers.process import LeftOutError, PeerProcess, environment
from benchmarks.rig.peers.table import PEERS, groups_of, merged_results, side_result, table, turn_order
from benchmarks.rig.report import command_line, write_report

from quad.core.storage.files import write_bytes
from quad.evaluate.bench.machine import machine

BASE, REST_SECONDS = "quad-openvino", 0.3
QUICK_WARM_UP, SLOW_WARM_UP = 2, 1


def main() -> int:
    """Prepare, measure, and show the whole table."""
    options = _options()
    report = json.loads(options.json.read_text(encoding="utf-8")) if options.json is not None and options.json.is_file() else {}
    pythons, left_out = _prepared(options)
    facts = machine("openvino", options.threads)
    for latent in options.latent if options.turns else ():
        for group in groups_of([name for name in options.peers if name not in left_out], BASE):
            sides = _group(group, latent, options, pythons, left_out)
            results = merged_results(report.get("results", {}), {latent: sides})
            told = {**report.get("left_out", {}), **left_out}
            report = {
                "machine": msgspec.to_builtins(facts), "results": results, "base": BASE,
                "left_out": {name: why for name, why in told.items() if not any(name in sides for sides in results.values())},
            }  # fmt: skip
            write_report(options.json, report)  # what is measured stays, whatever ends the run
    if not report:
        return 0
    print(table(report["results"]))
    for name, why in report["left_out"].items():
        print(f"left out: {PEERS[name].title}: {why}")
    if options.picture is not None:
        line = f"{facts.cpu}, {facts.threads} threads; shorter is faster; blue is quad, grey are others; 1x is {PEERS[BASE].title}"
        write_bytes(options.picture, picture(report["results"], line).encode())
    return 0


def _options() -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(PEERS) if text == "all" else tuple(text.split(","))
        if strange := [name for name in chosen if name not in PEERS]:
            parser.error(f"--peers: expected some of {', '.join(PEERS)}, found {strange[0]!r}; choose among these")
        return chosen

    def sizes(text: str) -> tuple[str, ...]:
        return tuple(
            side for side in text.split(",") if side in ("32", "64") or parser.error(f"--latent: expected 32 or 64, found {side!r}")
        )

    parser = command_line(__doc__)
    parser.add_argument("--peers", type=names, default=tuple(PEERS), help=f"all, or some of {', '.join(PEERS)}")
    parser.add_argument("--latent", type=sizes, default=("32", "64"), help="sides of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--turns", type=int, default=7, help="rounds; 0 prepares what is needed and draws what --json holds")
    parser.add_argument("--slow-turns", type=int, default=3, help="rounds of sides that take seconds a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graphs", type=Path, default=Path("out/sd15"), help="the --cache of benchmarks.sd15, which builds them")
    parser.add_argument("--envs", type=Path, default=Path("out/peers/envs"), help="where environments of other programs are made")
    parser.add_argument("--files", type=Path, default=Path("out/peers/files"), help="where the files that these read go, 9 GB")
    parser.add_argument("--picture", type=Path, help="draw the table there")
    return parser.parse_args()


def _tell(line: str) -> None:
    print(f"peers: {line}", file=sys.stderr, flush=True)


def _prepared(options: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """The interpreter of every environment that is needed, and why a peer is left out; writes what the peers read."""
    pythons, left_out = {"": Path(sys.executable)}, {}
    files: dict[str, None] = {}
    for name in options.peers:
        peer = PEERS[name]
        try:
            if peer.environment not in pythons:
                _tell(f"environment {peer.environment}")
                pythons[peer.environment] = environment(options.envs.absolute(), peer.environment)
            files |= dict.fromkeys(peer.files)
        except LeftOutError as error:
            left_out[name] = str(error)
    if files:  # in a process of its own, whose memory goes with it
        words = [sys.executable, "-m", "benchmarks.rig.peers.files", str(options.files.absolute()), *files]
        if subprocess.run(words, check=False).returncode:
            raise SystemExit("peers: the files of other programs could not be written, see above")
    return pythons, left_out


def _group(
    names: list[str], latent: str, options: argparse.Namespace, pythons: dict[str, Path], left_out: dict[str, str]
) -> dict[str, Any]:
    """Some sides in turns."""
    slow = any(PEERS[name].slow for name in names)
    turns, warm_up = (options.slow_turns, SLOW_WARM_UP) if slow else (options.turns, QUICK_WARM_UP)
    with ExitStack() as stack:
        sides: dict[str, PeerProcess] = {}
        for name in names:
            _tell(f"{latent}: load {name}")
            log = options.envs.absolute() / f"{name}-{latent}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            try:
                side = stack.enter_context(
                    PeerProcess(pythons[PEERS[name].environment], _words(name, latent, options), log, options.threads)
                )
                for _ in range(warm_up):
                    side.ask("step")
                sides[name] = side
            except LeftOutError as error:
                left_out[name] = str(error)
        times: dict[str, list[list[float]]] = {name: [] for name in sides}
        for turn in range(turns):
            for name in turn_order(list(sides), turn):
                sleep(REST_SECONDS)  # threads of the side before go to sleep
                calls = sorted(sides[name].ask("step"))
                times[name].append(calls[len(calls) // 2])
            _tell(
                f"{latent}: "
                + ", ".join(f"{name} {turn_ms[-1][0]:.0f}" for name, turn_ms in times.items())
                + f" ms, load {os.getloadavg()[0]:.1f}"
            )
        return {name: _result(name, side, times) for name, side in sides.items()}


def _result(name: str, side: PeerProcess, times: dict[str, list[list[float]]]) -> dict[str, Any]:
    return {
        **side_result(times[name], times[BASE]),
        "peak_bytes": side.ask("memory"),  # before another adapter is read
        "switch_ms": side.ask("switch"),
        "load_s": side.seconds,
        "is_graph": PEERS[name].words[-1:] == ("merged",),
        "load_average": os.getloadavg()[0],
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "note": PEERS[name].note,
    }


def _words(name: str, latent: str, options: argparse.Namespace) -> list[str]:
    """A worker's module and its words."""
    peer = PEERS[name]
    module = f"benchmarks.rig.peers.{peer.worker}"
    if peer.worker == "graph":
        engine, precision, floats, kind, side = peer.words
        file = options.graphs.absolute() / f"{latent}-16-mixed_80-16" / kind / side / "model.onnx"
        if not file.is_file():
            raise SystemExit(f"peers: expected {file}, found none; build it: python -m benchmarks.sd15 --latent {latent}")
        return [module, engine, precision, floats, str(file), str(options.threads)]
    return [module, str(options.files.absolute()), latent, str(options.threads), *peer.words]


if __name__ == "__main__":
    sys.exit(main())
