"""A reference model on Qualcomm's emulated HTP against full precision, with the bars it is held to.

    quad build toyland --target qnn-htp -o out/htp
    python -m benchmarks.htp out/htp [--model toyland-xl] [--n 16] [--pictures 16] [--tasks removal,...|all] [--json FILE]

- U-Net: one call of each held-out run, at a sampler step that goes round from first to last, every adapter; SQNR pooled over the calls,
  and the gain and SQNR of the adapter's effect: the same calls with the zero adapter, taken away.
- Pictures: whole ones of the task of fewest steps, or of `--tasks`, all four components on the emulated HTP, PSNR against full precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rig.report import command_line, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from quad.core.decibels import sqnr_db
from quad.evaluate.bench.machine import machine
from quad.evaluate.figures.effect import effect_of, held_out_probes, open_unet, unet_output
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.quality import find_adapters
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import run_task
from quad.quantize.observe.probes import Probe
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.engines.engine import default_threads
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.reference import MODELS, NAME, reference_dir

UNET_BAR_DB, PICTURE_BAR_DB, GAIN_BAR = 38.0, 36.0, (0.98, 1.02)
PICTURE_TASKS = {"toyland": "removal", "toyland-xl": "few-steps"}


def one_of_each_run(probes: Sequence[Probe]) -> Iterator[Probe]:
    """Of run k its call k, round and round: every run is independent, and all sampler steps take part."""
    runs: dict[tuple[str, int], list[Probe]] = {}
    for probe in probes:
        runs.setdefault((probe.source, probe.run), []).append(probe)
    for (_, run), calls in runs.items():
        yield calls[run % len(calls)]


def unet_figures(pipe: QuadPipeline, reference: Reference, model: Path, n: int, console: Console) -> dict[str, dict[str, float]]:
    """Adapter -> `sqnr_db` pooled over `n` calls, `worst_db` of one call, `gain` and `effect_db` of its effect, `n`."""
    session, store = open_unet(pipe.bundle, pipe.engine), AdapterStore(pipe.bundle)
    zero = store.mix([], [])[0]
    calls: dict[str, list[tuple[Any, ...]]] = {}
    for probe in track(list(one_of_each_run(held_out_probes(model, find_adapters(model), pipe.tasks, n))), "U-Net", console=console):
        sample, _, words = probe.tensors()
        true, base = (reference.network_output(name, sample, probe.timestep, words).numpy() for name in (probe.source, None))
        quantized, without = (unet_output(session, buffers, probe) for buffers in (store.buffers(probe.source), zero))
        calls.setdefault(probe.source, []).append((true, quantized, true - base, quantized - without))
    return {name: _figures(of_one) for name, of_one in calls.items()}


def _figures(calls: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    power = [
        (float(np.sum(np.square(true, dtype=np.float64))), float(np.sum(np.square(true - q, dtype=np.float64)))) for true, q, *_ in calls
    ]
    effect = effect_of([call[2] for call in calls], [call[3] for call in calls])
    if effect is None:
        raise ValueError("an adapter without an effect")
    return {
        "sqnr_db": sqnr_db(sum(p for p, _ in power), sum(q for _, q in power)),
        "worst_db": min(sqnr_db(p, q) for p, q in power),
        "gain": effect.gain,
        "effect_db": effect.sqnr_db,
        "n": len(calls),
    }


def picture_psnr(pipe: QuadPipeline, reference: Reference, task: str, n: int) -> dict[str, float]:
    """Mean and worst PSNR of `n` held-out pictures of a task, dB."""
    run = run_task(reference, pipe, task, n)
    each = [psnr(a, b) for a, b in zip(run.fp, run.quantized, strict=True)]
    return {"psnr_db": float(np.mean(each)), "worst_db": min(each), "n": n}


def table(result: dict[str, Any]) -> Table:
    """The figures beside their bars."""
    shown = Table("figure", "bar", "measured", "worst", "effect: gain, SQNR", "n", title="HTP emulation against FP32")
    rows = [(f"U-Net with {name}", UNET_BAR_DB, "sqnr_db", figures) for name, figures in result["unet"].items()]
    rows += [(f"{task}, whole picture", PICTURE_BAR_DB, "psnr_db", figures) for task, figures in result["pictures"].items()]
    for label, bar, key, figures in rows:
        colour, effect = "green" if figures[key] >= bar else "red", ""
        if "gain" in figures:
            within = "green" if GAIN_BAR[0] <= figures["gain"] <= GAIN_BAR[1] else "red"
            effect = f"[{within}]{figures['gain']:.3f}[/], {figures['effect_db']:.1f} dB"
        measured, worst = f"[{colour}]{figures[key]:.1f} dB[/]", f"{figures['worst_db']:.1f} dB"
        shown.add_row(label, f"{bar:.0f} dB", measured, worst, effect, str(figures["n"]))
    return shown


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="a reference model built for qnn-htp")
    parser.add_argument("--model", choices=MODELS, default=NAME, help="which one it is")
    parser.add_argument("--n", type=int, default=16, help="held-out samples; 0 for no calls of the U-Net alone")
    parser.add_argument("--pictures", type=int, default=16, help="whole pictures of each task; 0 for none")
    parser.add_argument("--tasks", help="whose pictures, by commas, or all; by default of the one of fewest steps")
    return parser.parse_args()


def main() -> None:
    """Measure a bundle on the emulated HTP."""
    options, console = _options(), Console(stderr=True)
    model = reference_dir(options.model)
    pipe, reference = QuadPipeline.from_pretrained(options.bundle, engine="qnn"), Reference(model, find_adapters(model))
    tasks = tuple(pipe.tasks) if options.tasks == "all" else (options.tasks or PICTURE_TASKS[options.model]).split(",")
    result = {
        "machine": machine("qnn", default_threads()),
        "requires": pipe.bundle.manifest.requires,
        "precision": pipe.bundle.manifest.precision,
        "unet": unet_figures(pipe, reference, model, options.n, console) if options.n else {},
        "pictures": {task: picture_psnr(pipe, reference, task, options.pictures) for task in tasks} if options.pictures else {},
    }
    console.print(table(result))
    write_report(options.json, result)


if __name__ == "__main__":
    main()
