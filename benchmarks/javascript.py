"""Whole pictures and calls of the JavaScript runtime in Node beside this one's, one thread each.

    python -m benchmarks.javascript BUNDLE

The JavaScript runtime is built before, in `js/`: `npm ci --ignore-scripts && npm run build`.
Every task with its own adapter, steps and sampler, seed 5, on the prompt and pictures of the bundle's conformance vectors. Printed are the
PSNR of Node's picture to the native one, CPU milliseconds of one U-Net call, milliseconds of a switch, and how many vectors pass.
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
NODE = Path(__file__).with_name("javascript.mjs")


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
    return [
        Figure(name="whole pictures, least PSNR to native", value=min(report["psnr"].values()), bar=45.0, unit="dB", least=True),
        Figure(name="adapter switch, median", value=report["switch_ms"], bar=5.0, unit="ms"),
        Figure(name="U-Net call over native", value=report["unet_cpu_ms"] / report["native_unet_cpu_ms"], bar=4.0, unit="times"),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", help="for ort, with conformance vectors")
    options = parser.parse_args()
    pipe = QuadPipeline.from_pretrained(options.bundle, engine="ort", threads=1)
    with TemporaryDirectory() as out:
        native_pictures(pipe, Path(out))
        native_ms = native_cpu_ms(pipe)
        done = subprocess.run(["node", NODE, options.bundle, out], capture_output=True, text=True, check=True)
    report = {"native_unet_cpu_ms": native_ms, **json.loads(done.stdout)}
    print(json.dumps(report, indent=1))
    print_figures(figures(report))
    write_report(options.json, report, figures(report))


if __name__ == "__main__":
    main()
