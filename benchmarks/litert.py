"""A reference model on LiteRT's CPU kernels against full precision, with the bars it is held to.

    quad build toyland --target litert -o out/litert
    python -m benchmarks.litert out/litert [--model toyland-xl] [--n 16] [--json FILE]

U-Net: one call of each held-out run, at a sampler step that goes round from first to last, every adapter; SQNR of the output and of what
the adapter changes in it, and the gain of that, pooled over the calls. Kernels of 16 bits are reference code: a second a call.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.htp import one_of_each_run
from benchmarks.rig.report import command_line, write_report
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from quad.core.decibels import sqnr_db
from quad.evaluate.bench.machine import machine
from quad.evaluate.figures.effect import effect_of, held_out_probes, open_unet, unet_output
from quad.evaluate.figures.quality import find_adapters
from quad.evaluate.figures.reference import Reference
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.engines.engine import default_threads
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.reference import MODELS, NAME, reference_dir

UNET_BAR_DB, GAIN_BAR = 36.0, 0.03
Outputs = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # float, float without adapter, quantized, that without


def figures(calls: Sequence[Outputs]) -> dict[str, Any]:
    """Of one adapter's calls."""
    energies = [
        (float(np.sum(np.square(true, dtype=np.float64))), float(np.sum(np.square(true - q, dtype=np.float64)))) for true, _, q, _ in calls
    ]
    effect = effect_of([true - zero for true, zero, _, _ in calls], [q - zero for _, _, q, zero in calls])
    return {
        "sqnr_db": sqnr_db(sum(p for p, _ in energies), sum(e for _, e in energies)),
        "worst_db": min(sqnr_db(p, e) for p, e in energies),
        "effect_db": None if effect is None else effect.capped_db,
        "gain": None if effect is None else effect.gain,
        "n": len(calls),
    }


def unet(pipe: QuadPipeline, reference: Reference, model: Path, n: int, console: Console) -> dict[str, dict[str, Any]]:
    """Adapter -> its figures."""
    session, store = open_unet(pipe.bundle, pipe.engine), AdapterStore(pipe.bundle)
    chosen = list(one_of_each_run(held_out_probes(model, find_adapters(model), pipe.tasks, n)))
    outputs: dict[str, list[Outputs]] = {}
    for probe in track(chosen, "U-Net", console=console):
        sample, _, words = probe.tensors()
        true, true_zero = (reference.network_output(name, sample, probe.timestep, words).numpy() for name in (probe.source, None))
        full, zero = (unet_output(session, store.mix(names, [1.0] * len(names))[0], probe) for names in ([probe.source], []))
        outputs.setdefault(probe.source, []).append((true, true_zero, full, zero))
    return {name: figures(calls) for name, calls in outputs.items()}


def table(result: dict[str, Any]) -> Table:
    """The figures beside their bars."""
    shown = Table(
        "adapter",
        f"U-Net, bar {UNET_BAR_DB:.0f} dB",
        "worst call",
        "effect",
        f"gain, bar 1 +- {GAIN_BAR}",
        "n",
        title="LiteRT against FP32",
    )
    for name, row in result["unet"].items():
        colour = "green" if row["sqnr_db"] >= UNET_BAR_DB and abs(row["gain"] - 1) <= GAIN_BAR else "red"
        shown.add_row(name, f"[{colour}]{row['sqnr_db']:.1f} dB[/]", f"{row['worst_db']:.1f} dB", f"{row['effect_db']:.1f} dB",
                      f"{row['gain']:.4f}", f"{row['n']}")  # fmt: skip
    return shown


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="a reference model built for litert")
    parser.add_argument("--model", choices=MODELS, default=NAME, help="which one it is")
    parser.add_argument("--n", type=int, default=16, help="held-out samples")
    parser.add_argument("--engine", default="litert", help="what runs the bundle")
    return parser.parse_args()


def main() -> None:
    """Measure a bundle."""
    options, console = _options(), Console(stderr=True)
    model = reference_dir(options.model)
    pipe, reference = QuadPipeline.from_pretrained(options.bundle, engine=options.engine), Reference(model, find_adapters(model))
    result = {
        "machine": machine(options.engine, default_threads()),
        "precision": pipe.bundle.manifest.precision,
        "unet": unet(pipe, reference, model, options.n, console),
    }
    console.print(table(result))
    write_report(options.json, result)


if __name__ == "__main__":
    main()
