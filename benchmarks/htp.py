"""The reference model on Qualcomm's emulated HTP against full precision, with the bars it is held to.

    quad build toyland --target qnn-htp -o out/htp
    python -m benchmarks.htp out/htp [--n 16] [--json FILE]

- U-Net: one call of each held-out run, at a sampler step that goes round from first to last, every adapter; SQNR pooled over the calls.
- Removal: whole pictures, all four components on the emulated HTP, PSNR against full precision.
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
from quad.evaluate.figures.effect import held_out_probes, open_unet, unet_output
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.quality import find_adapters
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import run_task
from quad.quantize.observe.probes import Probe
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.engines.engine import default_threads
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.reference import reference_dir

UNET_BAR_DB, REMOVAL_BAR_DB = 38.0, 36.0


def one_of_each_run(probes: Sequence[Probe]) -> Iterator[Probe]:
    """Of run k its call k, round and round: every run is independent, and all sampler steps take part."""
    runs: dict[tuple[str, int], list[Probe]] = {}
    for probe in probes:
        runs.setdefault((probe.source, probe.run), []).append(probe)
    for (_, run), calls in runs.items():
        yield calls[run % len(calls)]


def unet_sqnr(pipe: QuadPipeline, reference: Reference, n: int, console: Console) -> dict[str, dict[str, float]]:
    """Adapter -> `sqnr_db` pooled over `n` calls, `worst_db` of one call, `n`."""
    session, store = open_unet(pipe.bundle, pipe.engine), AdapterStore(pipe.bundle)
    model = reference_dir()
    chosen = list(one_of_each_run(held_out_probes(model, find_adapters(model), pipe.tasks, n)))
    sums: dict[str, list[tuple[float, float]]] = {}
    for probe in track(chosen, "U-Net", console=console):
        sample, _, words = probe.tensors()
        true = reference.network_output(probe.source, sample, probe.timestep, words).numpy().astype(np.float64)
        quantized = unet_output(session, store.buffers(probe.source), probe)
        sums.setdefault(probe.source, []).append((float(np.sum(true**2)), float(np.sum((true - quantized) ** 2))))
    return {
        name: {
            "sqnr_db": sqnr_db(sum(p for p, _ in calls), sum(q for _, q in calls)),
            "worst_db": min(sqnr_db(p, q) for p, q in calls),
            "n": len(calls),
        }
        for name, calls in sums.items()
    }


def removal_psnr(pipe: QuadPipeline, reference: Reference, n: int) -> dict[str, float]:
    """Mean and worst PSNR of `n` held-out removals, dB."""
    run = run_task(reference, pipe, "removal", n)
    each = [psnr(a, b) for a, b in zip(run.fp, run.quantized, strict=True)]
    return {"psnr_db": float(np.mean(each)), "worst_db": min(each), "n": n}


def table(result: dict[str, Any]) -> Table:
    """The figures beside their bars."""
    shown = Table("figure", "bar", "measured", "worst", "n", title="HTP emulation against FP32")
    rows = [(f"U-Net with {name}", UNET_BAR_DB, "sqnr_db", figures) for name, figures in result["unet"].items()]
    rows.append(("removal, whole picture", REMOVAL_BAR_DB, "psnr_db", result["removal"]))
    for label, bar, key, figures in rows:
        colour = "green" if figures[key] >= bar else "red"
        shown.add_row(label, f"{bar:.0f} dB", f"[{colour}]{figures[key]:.1f} dB[/]", f"{figures['worst_db']:.1f} dB", str(figures["n"]))
    return shown


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="toyland built for qnn-htp")
    parser.add_argument("--n", type=int, default=16, help="held-out samples")
    return parser.parse_args()


def main() -> None:
    """Measure a bundle on the emulated HTP."""
    options, console = _options(), Console(stderr=True)
    model = reference_dir()
    pipe, reference = QuadPipeline.from_pretrained(options.bundle, engine="qnn"), Reference(model, find_adapters(model))
    result = {
        "machine": machine("qnn", default_threads()),
        "requires": pipe.bundle.manifest.requires,
        "precision": pipe.bundle.manifest.precision,
        "unet": unet_sqnr(pipe, reference, options.n, console),
        "removal": removal_psnr(pipe, reference, options.n),
    }
    console.print(table(result))
    write_report(options.json, result)


if __name__ == "__main__":
    main()
