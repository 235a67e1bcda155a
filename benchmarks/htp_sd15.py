"""Stable Diffusion 1.5's U-Net, random weights, W8A16, 128 slots of rank 16, to one binary for Qualcomm's HTP, and the cost of it.

    python -m benchmarks.htp_sd15 [--latent 32] [--soc SM8750] [--step] [--cache DIR] [--json FILE]

Peaks of memory hold everything up to that point, the torch network too. `--step` also runs one step in the emulator, which takes minutes,
and compares it with full precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from benchmarks.rig.graphs import COMPONENT, OUTPUT, network_inputs, random_adapter, random_unet
from benchmarks.rig.report import command_line, write_report
from numpy.typing import NDArray
from rich.console import Console

from quad.compile.artifact import MODEL_FILE
from quad.compile.export import GraphSpec, export_graph
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import IntegerGraph, host_inputs, lower_layers, place_integers, with_sinusoid
from quad.compile.qnn.chips import DEFAULT_SOC, soc_named
from quad.compile.qnn.htp import compile_htp
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.decibels import array_sqnr_db
from quad.core.encoding import Encoding
from quad.core.memory import peak_ram_bytes
from quad.core.ports import Sinusoid
from quad.evaluate.bench.machine import machine
from quad.lora.fit.integers import balanced_inputs, integer_slots
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_network
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.runtime.engines.engine import default_threads

RANK, GB = 16, 1e9
STEP_FILE = "step.npz"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The exported network and what its placement is made from."""

    model: ir.Model
    encodings: Mapping[str, Encoding]
    call: ComponentCall
    expected: NDArray[np.float32]
    sinusoid: Sinusoid


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start = perf_counter()
        outcome = work()
        self.seconds[stage] = perf_counter() - start
        return outcome


def prepare(latent: int, clock: Clock) -> Prepared:
    """The slotted network exported, with a profile of one float run."""
    unet = random_unet()
    adapter = random_adapter(unet, RANK)
    network, table = slot_network(unet, (adapter,))
    inputs, balanced = network_inputs(latent), balanced_inputs(adapter, table)
    slots = {name: torch.from_numpy(array) for name, array in balanced.items()}

    def run() -> NDArray[np.float32]:
        with torch.no_grad():
            output: NDArray[np.float32] = network(*inputs.values(), slots).numpy()
        return output

    statistics = clock("observe", lambda: observe({COMPONENT: network}, [Feed("noise", run)]))
    largest = load_target("qnn-htp").int16_largest
    options = UnifyOptions(lora_bits=16, ranges=RangeOptions(method="minmax"), int16_largest=largest)
    integers = integer_slots(table, 16, largest)
    profile = clock("profile", lambda: unify(statistics, {COMPONENT: weights_of(network)}, integers, (adapter,), options))
    model = clock("export", lambda: export_graph(network, GraphSpec(component=COMPONENT, inputs=inputs, output=OUTPUT, slots=slots)))
    call = ComponentCall(
        component=COMPONENT, source="noise", inputs={name: tensor.numpy() for name, tensor in inputs.items()}, slots=balanced
    )
    return Prepared(
        model=model,
        encodings=profile.component(COMPONENT),
        call=call,
        expected=run(),
        sinusoid=Sinusoid(channels=int(unet.config["block_out_channels"][0])),
    )


def build(folder: Path, latent: int, soc: str) -> dict[str, Any]:
    """Place and compile; figures of both. The expected output of one step lies beside the binary's folder."""
    clock, target = Clock(), load_target("qnn-htp")
    prepared = prepare(latent, clock)

    def place() -> IntegerGraph:
        lowered = lower_layers(run_passes(prepared.model, passes_before(target.passes)), prepared.encodings, target, unobserved)
        calls = host_inputs([prepared.call], prepared.sinusoid)
        return with_sinusoid(place_integers(lowered, prepared.encodings, calls, target, unobserved), prepared.sinusoid)

    graph = clock("passes and placement", place)
    peaks = [peak_ram_bytes()]
    placement = clock("compile", lambda: compile_htp(graph, folder, soc_named(soc))).placement
    peaks.append(peak_ram_bytes())
    integers = {name: prepared.encodings[name].quantize(array) for name, array in prepared.call.slots.items()}
    np.savez(folder.parent / STEP_FILE, expected=prepared.expected, **prepared.call.inputs, **integers)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {"placement": placement, "seconds": clock.seconds, "peak_rss_placed": peaks[0], "peak_rss_compiled": peaks[1], "bytes": sizes}


def step(folder: Path) -> dict[str, float]:
    """One emulated step against full precision."""
    from quad.runtime.engines.qnn import open_engine

    with np.load(folder.parent / STEP_FILE) as stored:
        arrays = {name: stored[name] for name in stored.files}
    expected = arrays.pop("expected")
    session = open_engine("w8a16").load(folder / MODEL_FILE, default_threads())
    session.bind({name: array for name, array in arrays.items() if ".lora_" in name})
    start = perf_counter()
    output = session.run({name: array for name, array in arrays.items() if ".lora_" not in name})
    return {"seconds": perf_counter() - start, "sqnr_db": array_sqnr_db(expected, output), "peak_rss": peak_ram_bytes()}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--latent", type=int, default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--soc", default=DEFAULT_SOC, help="the chip")
    parser.add_argument("--step", action="store_true", help="run one step in the emulator")
    parser.add_argument("--cache", type=Path, default=Path("out/htp_sd15"), help="where the binary goes, about 1 GB")
    return parser.parse_args()


def main() -> None:
    """Compile SD1.5's shape for the HTP and print the cost."""
    options, console = _options(), Console(stderr=True)
    latent, soc = options.latent, options.soc
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f"{soc}-{latent}-", dir=options.cache)) / COMPONENT
    with console.status("placing and compiling"):
        result = {"machine": machine("qnn", default_threads()), "latent": latent, "soc": soc, **apart(build, folder, latent, soc)}
    if options.step:
        with console.status("one emulated step"):
            result["step"] = apart(step, folder)
    placed = result["placement"]
    console.print(f"{placed['on_target']} of {placed['nodes']} nodes on {soc}, {placed['partitions']} partition")
    console.print(", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds"].items()))
    peaks = result["peak_rss_placed"] / GB, result["peak_rss_compiled"] / GB
    console.print(f"peak memory until placed {peaks[0]:.1f} GB, until compiled {peaks[1]:.1f} GB (bar for placement: 180 s, 12 GB)")
    console.print(f"binary {result['bytes']['model_qnn.bin'] / 1e6:.0f} MB")
    if "step" in result:
        console.print(f"one emulated step {result['step']['seconds']:.0f} s, {result['step']['sqnr_db']:.1f} dB against full precision")
    write_report(options.json, result)


if __name__ == "__main__":
    main()
