"""What each shortcut of a bundle loses and saves: its pictures against the bundle's own full run, and the time of their steps.

    python -m benchmarks.shortcuts BUNDLE [--n 16] [--sampler ddim:16] [--task TASK ...] [--row NAME ...] [--guidance 2,5] [--json FILE]
    python -m benchmarks.shortcuts GRAPH.onnx [--engine ort] [--threads 2]

Each row is a way of calling the pipeline, on the same held-out samples and the same noise. Rows take turns picture by picture, forth
and back. A time ratio is the median over pictures of shortcut over full run, in processor time of the whole picture; that of the decoder
in wall time. The control is a full run from another seed, against the full run. PSNR is a mean over pictures; "right" is the judge's share
of pictures that show what the words ask, of text-to-image.

Of a graph, such as `benchmarks.sd15` places, the U-Net is cut in two as `quad build --reuse` does, and a call of both is timed in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from benchmarks.rig.report import command_line, write_report

from quad import QuadPipeline
from quad.compile.artifact import FileArtifact
from quad.compile.shallow import write_with_shallow
from quad.core.extra_graphs import DEEP_FEATURE, SHALLOW_UNET, TINY_DECODER
from quad.core.slots import UNET
from quad.evaluate.bench.bench import use_adapter
from quad.evaluate.figures import metrics
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import PictureRequest
from quad.evaluate.figures.scores import score
from quad.runtime.engines.engine import open_engine
from quad.zoo.judge import Judge

Words = Mapping[str, Any]
FULL, OTHER_SEED, CONTROL_SEED = "full", "another seed", 10**6
TEXT_TO_IMAGE = "text-to-image"
GRAPH_TURNS = 7
REUSED = (2, 3, 4, 8)
INTERVALS = ("0.1:1", "0:0.8", "0.1:0.8", "0.2:0.7", "0:0.5", "0.5:1")


def shortcuts(pipe: QuadPipeline, guided: bool) -> dict[str, Words]:
    """Row name -> words of a call, of what this bundle can leave out."""
    rows: dict[str, Words] = {FULL: {}}
    if guided:
        rows |= {f"guidance {interval}": {"guidance_interval": interval} for interval in INTERVALS}
        rows["no guidance"] = {"guidance_scale": 1.0}
    if SHALLOW_UNET in pipe.bundle.manifest.components:
        rows |= {f"reuse {every}": {"reuse": every} for every in REUSED}
        if guided:
            rows["reuse 2, guidance 0:0.8"] = {"reuse": 2, "guidance_interval": "0:0.8"}
    if TINY_DECODER in pipe.bundle.manifest.components:
        rows["tiny decoder"] = {"tiny_decoder": True}
    return rows


class Row:
    """Pictures of one row, and what they took."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.pictures: list[Any] = []
        self.cpu_ms: list[float] = []
        self.decoder_ms: list[float] = []

    def make(self, pipe: QuadPipeline, task: str, request: PictureRequest, seed: int, common: Words) -> None:
        """One more picture."""
        words = {**common, **self.words}
        start = process_time()
        made = pipe(request.prompt, task=task, image=request.image, mask_image=request.mask, seed=seed, prompt_syntax="plain", **words)
        self.pictures.append(np.asarray(made.images[0]))
        self.cpu_ms.append((process_time() - start) * 1e3)
        self.decoder_ms.append(made.timings_ms["vae_decoder"])


def measure(pipe: QuadPipeline, task: str, rows: Mapping[str, Words], common: Words, n: int) -> dict[str, Any]:
    """Every row against the full one: PSNR and SSIM of the pictures, ratios of time."""
    samples = held_out(task, n)
    use_adapter(pipe, pipe.tasks[task].adapter)
    sides = {name: Row(words) for name, words in rows.items()} | {OTHER_SEED: Row({})}
    for index, request in enumerate(picture_requests(samples)):
        order = list(sides.items())
        for name, row in order if index % 2 else reversed(order):
            row.make(pipe, task, request, request.seed + (CONTROL_SEED if name == OTHER_SEED else 0), common)
    judge, full = Judge.load(), sides[FULL]
    figures = {}
    for name, row in sides.items():
        pairs = list(zip(full.pictures, row.pictures, strict=True))
        decibels = [metrics.psnr(*pair) for pair in pairs]
        figures[name] = {
            "psnr": statistics.mean(decibels),
            "psnr_least": min(decibels),
            "ssim": statistics.mean(metrics.ssim(*pair) for pair in pairs),
            "cpu_ratio": _ratio(row.cpu_ms, full.cpu_ms),
            "decoder_ratio": _ratio(row.decoder_ms, full.decoder_ms),
            "cpu_ms": statistics.median(row.cpu_ms),
            "decoder_ms": statistics.median(row.decoder_ms),
            "scores": score(task, samples, np.stack(row.pictures), judge),
        }
    return figures


def measure_graph(file: Path, engine: str, threads: int) -> dict[str, float]:
    """Processor seconds of a whole and of a shallow call, and how far apart their answers are."""
    with TemporaryDirectory() as scratch:
        source = FileArtifact(source=file.parent, placement={}, agreement_db={})
        files = {name: Path(scratch) / part.file for name, part in write_with_shallow(Path(scratch) / UNET, source).items()}
        opened = open_engine(engine, (), "mixed:80")
        whole, shallow = (opened.load(files[name], threads) for name in (UNET, SHALLOW_UNET))
        inputs = {name: np.zeros([n or 1 for n in shape], np.float32) for name, shape in whole.inputs.items() if "lora" not in name}
        draw = np.random.default_rng(0)
        inputs = {name: draw.standard_normal(array.shape).astype(np.float32) for name, array in inputs.items()}
        slots = {name: np.zeros([n or 1 for n in shape], _slot_dtype(name)) for name, shape in whole.inputs.items() if name not in inputs}
        whole.bind(slots)
        shallow.bind({name: array for name, array in slots.items() if name in shallow.inputs})
        output, deep = whole.run_all(inputs)
        feed = {name: {**inputs, DEEP_FEATURE: deep}[name] for name in shallow.inputs if "lora" not in name}
        error = np.abs(shallow.run(feed) - output).max()
        turns = [(_seconds(partial(whole.run, inputs)), _seconds(partial(shallow.run, feed))) for _ in range(GRAPH_TURNS)]
        size = files[SHALLOW_UNET].stat().st_size
    ratio = statistics.median(part / all_of_it for all_of_it, part in turns)
    return {"whole_s": min(turns)[0], "shallow_over_whole": ratio, "largest_error": float(error), "shallow_bytes": size}


def _slot_dtype(name: str) -> str:
    return "float32" if "lora_scale" in name else "int16"


def _seconds(run: Callable[[], object]) -> float:
    start = process_time()
    run()
    return process_time() - start


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    """Measure the rows of every task and print them."""
    options = _options()
    if options.bundle.suffix == ".onnx":
        figures = measure_graph(options.bundle, "ort" if options.engine == "auto" else options.engine, options.threads)
        print(figures)
        write_report(options.json, figures)
        return 0
    pipe = QuadPipeline.from_pretrained(options.bundle, threads=options.threads, engine=options.engine)
    report: dict[str, Any] = {}
    for task in options.task or list(pipe.tasks):
        scales = options.guidance.split(",") if task == TEXT_TO_IMAGE else ["1"]
        for scale in scales:
            common = {"sampler": options.sampler, "guidance_scale": float(scale)}
            rows = {name: words for name, words in shortcuts(pipe, float(scale) > 1).items() if name == FULL or _chosen(name, options.row)}
            title = f"{task}, guidance {scale}, {options.sampler}"
            report[title] = measure(pipe, task, rows, common, options.n)
            _print(title, report[title])
    write_report(options.json, report)
    return 0


def _chosen(name: str, wanted: Sequence[str] | None) -> bool:
    return not wanted or any(name.startswith(word) for word in wanted)


def _print(title: str, figures: Mapping[str, Any]) -> None:
    print(title)
    for name, row in figures.items():
        right = row["scores"].get("kind")
        told = f", right {100 * right:.0f} %" if right is not None else ""
        print(f"  {name:<24} {row['psnr']:5.1f} dB (least {row['psnr_least']:.1f}), SSIM {row['ssim']:.3f}, time {row['cpu_ratio']:.2f}, "
              f"decoder {row['decoder_ratio']:.2f} of full{told}", flush=True)  # fmt: skip


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle of the reference model, or a placed graph")
    parser.add_argument("--n", type=int, default=16, help="held-out samples a task")
    parser.add_argument("--sampler", default="ddim:16", help="KIND:STEPS, in every task")
    parser.add_argument("--task", action="append", help="this task alone; repeat it")
    parser.add_argument("--row", action="append", help="rows whose names begin so; repeat it")
    parser.add_argument("--guidance", default="2,5", help="guidance scales of text-to-image")
    parser.add_argument("--engine", default="auto", help="what executes the graphs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
