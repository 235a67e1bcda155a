"""SDXL's U-Net, random weights, W8A16, 560 slots, to one binary for Qualcomm's HTP: what placing and compiling hold at most, by its width.

    python -m benchmarks.htp_xl [--widths 0.25,0.5] [--depth 1.0] [--latent 32] [--rank 16] [--soc SM8750] [--cache DIR] [--json FILE]

Weights are integers with steps from the start, as a build holds them behind `round`. Each width is placed in a process of its own, whose
memory of its own and pages of mapped files, which the system takes back at will, are counted apart, beyond what it held when the stage
began. The compiler runs behind it in another; in a build the networks lie beside the compiler, a byte a number.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from benchmarks.rig.graphs import COMPONENT, OUTPUT, random_adapter
from benchmarks.rig.report import command_line, write_report
from benchmarks.rig.xl_unet import rounded_xl_unet, xl_inputs
from benchmarks.rig.xl_world import Shape

from quad.compile.artifact import MODEL_FILE, save_graph
from quad.compile.export import GraphSpec, export_graph
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import host_inputs, lower_layers, place_integers, with_sinusoid
from quad.compile.qnn.chips import DEFAULT_SOC
from quad.compile.qnn.htp import placement_of
from quad.compile.qnn.own_process import compile_in_own_process
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.memory import release_memory
from quad.core.ports import Sinusoid
from quad.evaluate.bench.machine import machine
from quad.lora.fit.integers import balanced_inputs, integer_slots
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_network
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.engines.engine import default_threads

GB, _STATUS, _POLL_S = 1e9, Path("/proc/self/status"), 0.02
PLACED_FILE = "placed.onnx"


class Stages:
    """Seconds of each stage, and the most memory beyond what was held when it began, bytes."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block."""
        release_memory()
        before, peak, end = _resident(), {"own": 0, "mapped": 0}, Event()

        def watch() -> None:
            while not end.wait(_POLL_S):
                for kind, size in _resident().items():
                    peak[kind] = max(peak[kind], size - before[kind])

        watcher, start = Thread(target=watch), time.perf_counter()
        watcher.start()
        try:
            yield
        finally:
            end.set()
            watcher.join()
        self.figures[name] = {"seconds": time.perf_counter() - start, **peak}
        print(f"  {name}: {self.figures[name]}", file=sys.stderr, flush=True)


def _resident() -> dict[str, int]:
    """Bytes of the process's own memory and of files that it mapped."""
    sizes = dict(line.split(":") for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("Rss"))
    return {"own": int(sizes["RssAnon"].split()[0]) * 1024, "mapped": int(sizes["RssFile"].split()[0]) * 1024}


def placed(folder: Path, shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Export, place and write one width."""
    stage, target = Stages(), load_target("qnn-htp")
    unet = rounded_xl_unet(shape)
    parameters = sum(tensor.numel() for tensor in unet.parameters())
    adapter = random_adapter(unet, options.rank)
    network, table = slot_network(unet, (adapter,))
    inputs, balanced = xl_inputs(unet, options.latent), balanced_inputs(adapter, table)
    slots = {name: torch.from_numpy(array) for name, array in balanced.items()}
    with stage("profile"):
        statistics = observe({COMPONENT: network}, [Feed("noise", lambda: network(*inputs.values(), slots))])
        ranges = UnifyOptions(lora_bits=16, ranges=RangeOptions(method="minmax"), int16_largest=target.int16_largest)
        integers = integer_slots(table, 16, target.int16_largest)
        encodings = unify(statistics, {COMPONENT: weights_of(network)}, integers, (adapter,), ranges).component(COMPONENT)
    with stage("export"):
        model = export_graph(network, GraphSpec(component=COMPONENT, inputs=inputs, output=OUTPUT, slots=slots))
    sinusoid = Sinusoid(channels=int(unet.config["block_out_channels"][0]))
    call = ComponentCall(
        component=COMPONENT, source="noise", inputs={name: tensor.numpy() for name, tensor in inputs.items()}, slots=balanced
    )
    with stage("place"):
        lowered = lower_layers(run_passes(model, passes_before(target.passes)), encodings, target, unobserved)
        graph = with_sinusoid(place_integers(lowered, encodings, host_inputs([call], sinusoid), target, unobserved), sinusoid)
    with stage("write"):
        folder.mkdir(parents=True)
        save_graph(graph.model, folder / PLACED_FILE)
    return {"parameters": parameters, "slots": len(table.slots), "nodes": graph.nodes, "stages": stage.figures}


def compiled(folder: Path, nodes: int, soc: str) -> dict[str, Any]:
    """Compile what `placed` has written."""
    start = time.perf_counter()
    peak = compile_in_own_process(folder / PLACED_FILE, folder / MODEL_FILE, soc)
    seconds, binary = time.perf_counter() - start, next(folder.glob("*.bin")).stat().st_size
    return {"seconds": seconds, "peak": peak, "binary": binary, "placement": placement_of(folder / MODEL_FILE, nodes)}


def main() -> None:
    """Compile at each width and print what it took."""
    options = _options()
    report: dict[str, Any] = {"machine": machine("qnn", default_threads()), "latent": options.latent, "soc": options.soc, "widths": {}}
    for share in options.widths:
        folder = options.cache / f"{share:g}-{options.depth:g}"
        shutil.rmtree(folder, ignore_errors=True)
        print(f"width {share:g}", file=sys.stderr, flush=True)
        with get_context("spawn").Pool(1) as pool:
            figures = pool.apply(placed, (folder, Shape(share, options.depth), options))
        if not options.place_only:
            figures["compiler"] = compiled(folder, figures["nodes"], options.soc)
        report["widths"][f"{share:g}"] = figures
        _show(share, figures)
        if not options.place_only:
            shutil.rmtree(folder)
    write_report(options.json, report)


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument(
        "--widths", type=lambda text: [float(part) for part in text.split(",")], default=[0.25, 0.5], help="shares of SDXL's"
    )
    parser.add_argument("--depth", type=float, default=1.0, help="share of SDXL's")
    parser.add_argument("--latent", type=int, default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--rank", type=int, default=16, help="of the slots")
    parser.add_argument("--soc", default=DEFAULT_SOC, help="the chip")
    parser.add_argument("--place-only", action="store_true", help="compile nothing, and leave the placed graph")
    parser.add_argument("--cache", type=Path, default=Path("out/htp_xl"), help="where graphs and binaries lie meanwhile, 5 GB at width 1")
    return parser.parse_args()


def _show(share: float, figures: dict[str, Any]) -> None:
    parameters = figures["parameters"]
    print(f"width {share:g}: {parameters / GB:.3f} G parameters, {figures['slots']} slots, {figures['nodes']} nodes")
    for name, stage in figures["stages"].items():
        own, mapped = (stage[kind] / parameters for kind in ("own", "mapped"))
        print(f"  {name}: {stage['seconds']:.0f} s; {own:.2f} bytes a parameter of its own, {mapped:.2f} mapped")
    if "compiler" in figures:
        peak, binary, seconds = (figures["compiler"][key] for key in ("peak", "binary", "seconds"))
        print(f"  compiler: {seconds:.0f} s; {peak / GB:.2f} GB, {peak / parameters:.2f} bytes a parameter; binary {binary / 1e6:.0f} MB")
        print(f"  {figures['compiler']['placement']}")


if __name__ == "__main__":
    main()
