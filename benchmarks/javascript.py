"""Whole pictures and calls of the JavaScript runtime in Node, and in Chromium, beside this one's, one thread each.

    python -m benchmarks.javascript BUNDLE [--chromium]

The JavaScript runtime is built before, in `js/`: `npm ci --ignore-scripts && npm run build`. What a call costs by other options of the
engine is told by `node benchmarks/javascript_levers.mjs BUNDLE`.
Every task with its own adapter, steps and sampler, seed 5, on the prompt and pictures of the bundle's conformance vectors. Printed are the
PSNR of Node's picture to the native one, CPU milliseconds of one U-Net call, milliseconds of a switch, and how many vectors pass; of
Chromium, with one thread and with those of an isolated page, also the first picture of a visit with nothing cached, and the second one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import msgspec
import numpy as np
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report

from quad.core.slots import UNET
from quad.runtime.conformance import read_vectors
from quad.runtime.golden_outputs import read_probes
from quad.runtime.pipeline import QuadPipeline

SEED, CALLS = 5, 20
NODE, CHROMIUM = (Path(__file__).with_name(f"javascript{part}.mjs") for part in ("", "_chromium"))


def native_pictures(pipe: QuadPipeline, out: Path) -> None:
    """Write each task's picture as float32 `(1, H, W, 3)`."""
    conformance = read_vectors(pipe.bundle)
    for vector in conformance.vectors.pictures:
        image, mask = (None if name is msgspec.UNSET else conformance.tensor(name) for name in (vector.image, vector.mask))
        output = pipe(vector.prompt, task=vector.task, image=image, mask_image=mask, seed=SEED, output_type="np")
        np.asarray(output.images, "<f4").tofile(out / f"{vector.task}.bin")


def native_cpu_ms(pipe: QuadPipeline) -> float:
    """The median of one U-Net call's CPU time, its inputs those of the first stored one."""
    probe, graph, times = read_probes(pipe.bundle)[0], pipe.graph(UNET), []
    for _ in range(CALLS):
        start = process_time()
        graph.run(probe)
        times.append((process_time() - start) * 1e3)
    return float(np.median(times))


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Those that have a bar."""
    native_ms = report["native_unet_cpu_ms"]
    rows = _figures("Node", report["psnr"], report["switch_ms"], report["unet_cpu_ms"] / native_ms)
    if "chromium" in report:
        page = report["chromium"]["one"]
        rows += _figures("Chromium", page["psnr"], page["again"]["switch_ms"], page["unet"]["cpu_ms"] / native_ms)
        rows.append(Figure(name="Chromium: A, others, A again, equal to the bit", value=page["there_and_back"], bar=1.0, least=True))
    return rows


def _figures(place: str, psnr: Mapping[str, float], switch_ms: float, times: float) -> list[Figure]:
    return [
        Figure(name=f"{place}: whole pictures, least PSNR to native", value=min(psnr.values()), bar=45.0, unit="dB", least=True),
        Figure(name=f"{place}: adapter switch, median", value=switch_ms, bar=5.0, unit="ms"),
        Figure(name=f"{place}: U-Net call over native", value=times, bar=4.0, unit="times"),
    ]


def _answer(script: Path, *words: str) -> Any:
    """What a script prints."""
    return json.loads(subprocess.run(["node", script, *words], stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Measure, print and write."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", help="for ort, with conformance vectors")
    parser.add_argument("--chromium", action="store_true", help="also in the system's Chromium, some minutes")
    options = parser.parse_args()
    pipe = QuadPipeline.from_pretrained(options.bundle, engine="ort", threads=1)
    with TemporaryDirectory() as out:
        native_pictures(pipe, Path(out))
        native_ms = native_cpu_ms(pipe)
        report = {"native_unet_cpu_ms": native_ms, **_answer(NODE, options.bundle, out)}
        if options.chromium:
            report["chromium"] = _answer(CHROMIUM, options.bundle, out)
    print(json.dumps(report, indent=1))
    print_figures(figures(report))
    write_report(options.json, report, figures(report))


if __name__ == "__main__":
    main()
