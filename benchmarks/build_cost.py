"""What a whole build costs, beside that of another checkout: clock, CPU time by stage, memory, and what the adapters keep.

    python -m benchmarks.build_cost [--against TREE] [--width 160] [--size 128] [--adapters ink,logo,clay|all] [--precision w8a16]
        [--statistics auto|f32|bf16] [--turns 1] [--cache out/build-cost] [--json FILE]

The model has Stable Diffusion 1.5's layout and random weights: `--width 320 --size 256` and all ten adapters are the true size, an hour or
more a side on two cores. Smaller ones spend a larger share on what does not grow with it, tracing and loading. Each side is `quad build`
in a process of its own, by the code of its checkout; turns go there and back (A B, B A). Without `--against` this side builds alone.
What the last bundles keep is measured on calls common to all sides (`benchmarks.rig.common_calls`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.rig.common_calls import common_calls, common_db
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.world import RANKS, WIDTH, write_adapters, write_pipeline

import quad

HERE = Path(next(iter(quad.__path__))).parents[1]
GB = 1e9
BAR, LOSS_DB, PEAK_GB = 0.35, 0.1, 9.0


@dataclass(frozen=True, kw_only=True)
class Built:
    """One build.

    Args:
        seconds, cpu: by the clock; of the processor, user and system.
        stages: seconds by stage.
        stage_cpu, stage_peaks: seconds of the processor; bytes held at most up to the stage's end; empty where the checkout does not say.
        output_db: SQNR of the U-Net's output by adapter, aligned, on the build's own calls.
    """

    seconds: float
    cpu: float
    peak_bytes: int
    stages: dict[str, float]
    stage_cpu: dict[str, float]
    stage_peaks: dict[str, int]
    output_db: dict[str, float]


def main() -> int:
    """Build in turns and compare."""
    options = _options()
    model, adapters = _world(options.cache, options.width, options.adapters)
    trees = {**({} if options.against is None else {"other": options.against.resolve()}), "this": HERE}
    sides: dict[str, list[Built]] = {name: [] for name in trees}
    for turn in range(options.turns):
        for name in trees if turn % 2 == 0 else reversed(trees):
            print(f"build_cost: turn {turn + 1} of {options.turns}, {name}", file=sys.stderr, flush=True)
            sides[name].append(_build(trees[name], model, adapters, options))
    calls = common_calls(model, adapters, options.size)
    common = {name: common_db(_bundle(options, tree), calls) for name, tree in trees.items()}
    figures = _figures(sides, common, options)
    for name, builds in sides.items():
        print(
            f"{name:6} {', '.join(f'{built.seconds:.0f} s ({built.cpu:.0f} of CPU, {built.peak_bytes / GB:.2f} GB)' for built in builds)}"
        )
        print("       " + ", ".join(_stage(builds[-1], stage) for stage, seconds in builds[-1].stages.items() if seconds >= 1.0))
        print("       on common calls " + ", ".join(f"{adapter} {db:.2f} dB" for adapter, db in common[name].items()))
    print_figures(figures)
    built = {name: [asdict(built) for built in builds] for name, builds in sides.items()}
    write_report(options.json, {"sides": built, "common_db": common}, figures)
    return 0


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--against", type=Path, metavar="TREE", help="root of another checkout, such as a git worktree")
    parser.add_argument("--width", type=int, default=160, help=f"channels of the U-Net's first blocks, {WIDTH} in the true one")
    parser.add_argument("--size", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--adapters", type=_names, default=("ink", "logo", "clay"), help=f"all, or of {','.join(RANKS)}")
    parser.add_argument("--precision", default="w8a16")
    parser.add_argument("--statistics", help="of this side's build; the other checkout may not know the option")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("out/build-cost"), help="where models, LoRAs and bundles lie")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(RANKS) if text == "all" else tuple(text.split(","))


def _world(cache: Path, width: int, names: tuple[str, ...]) -> tuple[Path, dict[str, Path]]:
    folder = cache / f"world-{width}"
    if not (folder / "model" / "model_index.json").is_file():
        write_pipeline(folder / "model", width)
    every = write_adapters(folder / "loras", width)
    return folder / "model", {name: every[name] for name in names}


def _bundle(options: argparse.Namespace, tree: Path) -> Path:
    folder: Path = (options.cache / ("bundle" if tree == HERE else "bundle-other")).resolve()
    return folder


def _build(tree: Path, model: Path, adapters: dict[str, Path], options: argparse.Namespace) -> Built:
    named = [word for name, path in adapters.items() for word in ("--adapter", f"{name}={path.resolve()}")]
    words = ["build", str(model.resolve()), *named, "-o", str(_bundle(options, tree)), "--size", str(options.size),
             "--precision", options.precision, "--distill-steps", "0", "--json"]  # fmt: skip
    if options.statistics and tree == HERE:
        words += ["--statistics", options.statistics]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    run = subprocess.run([sys.executable, "-m", "quad", *words], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(f"build_cost: {tree}: {run.stderr.strip().splitlines()[-1]}")
    answer: dict[str, Any] = json.loads(run.stdout)
    return Built(
        seconds=seconds,
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak_bytes=answer["peak_ram_bytes"],
        stages=answer["stages"],
        stage_cpu=answer.get("stage_cpu", {}),
        stage_peaks=answer.get("stage_peak_bytes", {}),
        output_db={name: steps["after_rescale_db"] for name, steps in answer["alignment"].items()},
    )


def _stage(built: Built, stage: str) -> str:
    line = f"{stage} {built.stages[stage]:.0f} s"
    return f"{line} ({built.stage_cpu[stage]:.0f}, {built.stage_peaks[stage] / GB:.2f} GB)" if stage in built.stage_cpu else line


def _figures(sides: dict[str, list[Built]], common: dict[str, dict[str, float]], options: argparse.Namespace) -> list[Figure]:
    def ratio(field: str) -> float:
        this, other = (median(getattr(built, field) for built in sides[name]) for name in ("this", "other"))
        return float(this / other)

    figures = []
    if "other" in sides:
        lost = mean(common["other"][name] - db for name, db in common["this"].items())
        figures = [
            Figure(name="build, by the clock, over the other's", value=ratio("seconds"), bar=BAR, unit="x"),
            Figure(name="CPU time, over the other's", value=ratio("cpu"), bar=BAR, unit="x"),
            Figure(name="SQNR of the adapters' output that is lost, mean, on common calls", value=lost, bar=LOSS_DB, unit="dB"),
        ]
    if options.width == WIDTH:
        figures.append(Figure(name="peak memory", value=max(built.peak_bytes for built in sides["this"]) / GB, bar=PEAK_GB, unit="GB"))
    return figures


if __name__ == "__main__":
    sys.exit(main())
