"""A whole build at Stable Diffusion 1.5's size with ten LoRAs of mixed rank, killed half-way and gone on with, and a picture from it.

    python -m benchmarks.scale [--size 256] [--calibration-size N] [--precision w8a16] [--distill-steps 0] [--widest]
        [--width 320] [--against FILE] [--cache out/scale] [--json FILE]

What a user would do, by the command line, each command in a process of its own, which says what memory it took. Weights are random.
`--against` compares with the file of an earlier run, as weights of 4 bits (`--precision w4a16`) with those of 8.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.world import RANKS, WIDTH, write_adapters, write_pipeline

from quad.core.manifest import BundleManifest
from quad.runtime.bundle import COMPONENTS, open_bundle

QUAD = (sys.executable, "-m", "quad")
KILLED_AT = "calibrate 5 of"  # what `quad build` says when it is killed
ADAPTER = "ink"  # of rank 16
WIDEST = (ADAPTER, "logo", "lcm", "world")  # these four have every slot of the ten, at its rank
GB = 1e9


@dataclass(frozen=True)
class Command:
    """One command: seconds, and its JSON; None where it was killed."""

    seconds: float
    answer: dict[str, Any] | None


def run(*arguments: str, kill_at: str | None = None) -> Command:
    """`quad ARGUMENTS --json`, killed without warning once it says `kill_at` on stderr."""
    start = time.perf_counter()
    process = subprocess.Popen([*QUAD, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stdout is not None
    last = ""
    for line in process.stderr:
        last = line.strip() or last
        if kill_at is not None and kill_at in line:
            process.send_signal(signal.SIGKILL)
            break
    text, _ = process.communicate()
    if process.returncode and kill_at is None:
        raise SystemExit(f"scale: quad {arguments[0]} failed: {last}")
    return Command(time.perf_counter() - start, None if process.returncode else json.loads(text))


def main() -> int:
    """Build, kill, go on, run, and print the bars."""
    options = _options()
    kind = f"{options.size}-{options.precision.replace(':', '_')}{'-widest' if options.widest else ''}"
    bundle = options.cache / f"bundle-{kind}{'' if options.width == WIDTH else f'-{options.width}'}"
    model, every = _world(options.cache / ("world" if options.width == WIDTH else f"world-{options.width}"), options.width)
    adapters = {name: path for name, path in every.items() if name in WIDEST or not options.widest}
    named = [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]
    measured = options.calibration_size or options.size
    build = ("build", str(model), *named, "-o", str(bundle), "--size", str(options.size), "--precision", options.precision,
             "--distill-steps", str(options.distill_steps), "--calibration-size", str(measured))  # fmt: skip
    killed = None if options.no_kill else run(*build, kill_at=KILLED_AT)
    built = run(*build)
    picture = run("run", str(bundle), "--task", "text-to-image", "--adapter", ADAPTER, "--prompt", "a cat", "--steps", "2", "--seed", "0",
                  "-o", str(options.cache / "cat.png"))  # fmt: skip
    manifest = open_bundle(bundle, verify=False).manifest
    report = _report(killed, built, picture, manifest)
    figures = _figures(report, whole=options.width == WIDTH)
    if options.against is not None:
        figures += _against(report, json.loads(options.against.read_text()))
    print_figures(figures)
    write_report(options.json, report, figures)
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--calibration-size", type=int, help="of the pictures that ranges are measured on, default as --size")
    parser.add_argument("--precision", default="w8a16")
    parser.add_argument("--distill-steps", type=int, default=0)
    parser.add_argument("--widest", action="store_true", help=f"only {', '.join(WIDEST)}: the same slots, built in half the time")
    parser.add_argument("--width", type=int, default=WIDTH, help=f"channels of the U-Net's first blocks, {WIDTH} in the true one")
    parser.add_argument("--against", type=Path, metavar="FILE", help="--json of an earlier run, such as one at w8a16")
    parser.add_argument("--cache", type=Path, default=Path("out/scale"), help="where model, LoRAs and bundle are kept, 5 GB")
    parser.add_argument("--no-kill", action="store_true", help="build in one go")
    return parser.parse_args()


def _world(folder: Path, width: int) -> tuple[Path, dict[str, Path]]:
    if not (folder / "model" / "model_index.json").is_file():
        write_pipeline(folder / "model", width)
    return folder / "model", write_adapters(folder / "loras", width)


def _report(killed: Command | None, built: Command, picture: Command, manifest: BundleManifest) -> dict[str, Any]:
    assert built.answer is not None
    assert picture.answer is not None
    rom = built.answer["rom_bytes"]
    graphs = [name for part in COMPONENTS for name in (manifest.components[part].file, *manifest.components[part].data_files)]
    graph_bytes = sum(manifest.files[name].size_bytes for name in graphs)
    used = picture.answer["adapter"]
    return {
        "killed": None if killed is None else {"seconds": killed.seconds},
        "build": {"seconds": built.seconds, "peak_bytes": built.answer["peak_ram_bytes"], "stages": built.answer["stages"],
                  "resumed": built.answer["resumed"], "smoke": built.answer["smoke"]},
        "rom_bytes": rom,
        "separate_bytes": len(manifest.adapters) * graph_bytes,
        "bundle_bytes": rom["shared"] + sum(rom["adapters"].values()),
        "run": {"seconds": picture.seconds, "peak_bytes": picture.answer["peak_ram_bytes"], "timings_ms": picture.answer["timings_ms"],
                "resident_bytes": graph_bytes + rom["adapters"][used]},
    }  # fmt: skip


def _figures(report: dict[str, Any], *, whole: bool) -> list[Figure]:
    """`whole`: of the true width, which the bars of bytes are for."""
    build, picture, separate = report["build"], report["run"], report["separate_bytes"]
    every = len(report["rom_bytes"]["adapters"]) == len(RANKS)
    of_true_size = [
        Figure(name="peak memory of the build", value=build["peak_bytes"] / GB, bar=14.0, unit="GB"),
        Figure(name="shared part of the bundle", value=report["rom_bytes"]["shared"] / GB, bar=1.15, unit="GB"),
    ]
    return [
        *(of_true_size if whole else []),
        Figure(
            name="peak memory of quad run over the files it reads",
            value=picture["peak_bytes"] / picture["resident_bytes"],
            bar=1.6,
            unit="x",
        ),
        *(
            [Figure(name="ten binaries over one bundle", value=separate / report["bundle_bytes"], bar=8.0, unit="x", least=True)]
            if every
            else []
        ),
    ]


def _against(report: dict[str, Any], other: dict[str, Any]) -> list[Figure]:
    def ratio(*path: str) -> float:
        this, that = report, other
        for key in path:
            this, that = this[key], that[key]
        return float(this / that)  # type: ignore[operator]

    return [
        Figure(name="peak memory of quad run, over the other's", value=ratio("run", "peak_bytes"), bar=0.7, unit="x"),
        Figure(name="shared part of the bundle, over the other's", value=ratio("rom_bytes", "shared"), bar=0.56, unit="x"),
        Figure(name="time of the build, over the other's", value=ratio("build", "seconds"), bar=1.2, unit="x"),
        Figure(name="peak memory of the build, over the other's", value=ratio("build", "peak_bytes"), bar=1.0, unit="x"),
        Figure(
            name="the other's separate binaries, over this bundle",
            value=other["separate_bytes"] / report["bundle_bytes"],
            bar=12.0,
            unit="x",
            least=True,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
