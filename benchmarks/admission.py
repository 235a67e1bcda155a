"""Admission on the reference model: its cost, and the pictures that it brings.

    python -m benchmarks.admission BUNDLE LORA [--n 32] [-o out/admission] [--json FILE]

A later LoRA is admitted without the base, and with it. Its pictures, and those of the bundle's own adapters, are held against full
precision. Then the tolerance of golden outputs: what engines and threads make of one adapter, and how far another one is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rig.report import command_line, write_report

from quad.admit.request import AdaptRequest
from quad.align.adapt import adapt
from quad.core.slots import UNET
from quad.evaluate.figures import metrics
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import bundle_pictures
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.golden_outputs import block_means, read_probes, unet_buffers
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from quad.zoo.reference import reference_adapters, reference_dir
from quad.zoo.world import PASTEL_PROMPT

TASK, LIKE, NAME = "pastel", "transform", "pastel"


def main() -> None:
    """Measure and print golden outputs and pictures."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/admission"), help="where the packs and admission.json go")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    alone = AdaptRequest(options.bundle, NAME, options.lora, output=options.output / "alone.qpack", task=TASK, like=LIKE)
    samples = calibration_samples(reference_dir(), [NAME])
    based = replace(alone, output=options.output / "based.qpack", base=reference_dir(), samples=samples, prompts=(PASTEL_PROMPT,))
    report: dict[str, Any] = {"alone": adapt(alone).to_json(), "based": adapt(based).to_json()}
    report["golden"] = golden_figures(open_bundle(options.bundle), ("ort", "openvino"))
    report["pictures"] = picture_figures(options.bundle, options.lora, options.output, options.n)
    write_report(options.json or options.output / "admission.json", report)
    for key in ("golden", "pictures"):
        print(json.dumps({key: report[key]}))


def picture_figures(bundle: Path, lora: Path, out: Path, n: int) -> dict[str, float]:
    """PSNR in dB of the bundle's pictures to full precision, mean over pictures: its own tasks, and the new one by both packs."""
    reference = Reference(reference_dir(), {**reference_adapters(), NAME: lora})
    pipe, psnr_db = QuadPipeline.from_pretrained(bundle), {}
    for label in ("own", "alone", "based"):
        if label != "own":
            pipe.load_lora_weights(out / f"{label}.qpack", NAME)
        tasks = [task for task, spec in pipe.tasks.items() if spec.adapter is not None] if label == "own" else [TASK]
        for task in tasks:
            requests, spec = picture_requests(held_out(task, n)), pipe.tasks[task]
            pipe.set_adapters(str(spec.adapter))
            pictures, _ = bundle_pictures(pipe, task, requests)
            pairs = zip(reference.pictures(task, requests, spec), pictures, strict=True)
            psnr_db[task if label == "own" else f"{task} {label}"] = float(np.mean([metrics.psnr(a, b) for a, b in pairs]))
            print(label, task, f"{list(psnr_db.values())[-1]:.2f} dB", file=sys.stderr)
    return psnr_db


def golden_figures(bundle: Bundle, engines: tuple[str, ...]) -> dict[str, float]:
    """Largest difference of one block mean over their RMS: by threads, lean loading, engine; and the least one to another adapter."""
    store, probes = AdapterStore(bundle), read_probes(bundle)
    names = [None, *store.names]

    def answers(engine: str, threads: int, lean: bool = False) -> np.ndarray:
        session = open_engine(engine, (), bundle.manifest.precision).load(bundle.graph(UNET), threads, lean)
        rows = []
        for name in names:
            session.bind(unet_buffers(bundle, store.zeros if name is None else store.buffers(name)))
            rows.append([block_means(session.run(call)) for call in probes])
        return np.array(rows)

    first = answers(engines[0], 1)
    rms = np.sqrt((first**2).mean(axis=2))
    ways = {"threads": (engines[0], 2, False), "lean": (engines[0], 1, True), **{engine: (engine, 1, False) for engine in engines[1:]}}
    differences = {label: float((np.abs(answers(*way) - first).max(axis=2) / rms).max()) for label, way in ways.items()}
    apart = [np.abs(first[i] - first[j]).max(axis=1) / rms[i] for i in range(len(names)) for j in range(len(names)) if i != j]
    return {**differences, "another": float(np.min(apart))}


if __name__ == "__main__":
    main()
