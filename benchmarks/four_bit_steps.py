"""A step of Stable Diffusion 1.5's U-Net with weights of 4 bits beside 8, at the same activations: CPU time, file, memory.

    python -m benchmarks.four_bit_steps [--width 320] [--latent 32] [--engines ort,openvino] [--activations 16,mixed] [--corrected some]
        [--repeats 9] [--json FILE]

Weights are random and rounded to the nearest: times and bytes are those of a build, numbers are none. Every layer that may have 4 bits has
them. Of these as many as a build corrects, drawn at random (`--corrected all` for every one, or `none`), have a correction's slot, beside
128 attention slots of rank 16. Sides take turns (A B, B A, ...), each in a process of its own, on one thread unless `--threads` says more.
A side's memory holds this program's libraries too, 0.5 GB of torch: that of `quad run` is for `benchmarks.scale --against`.
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from benchmarks.rig.figures import Figure
from benchmarks.rig.graphs import COMPONENT, OUTPUT, SLOTS_FILE, TARGETS, network_inputs, random_adapter
from benchmarks.rig.report import command_line, print_figures, write_report
from benchmarks.rig.sides import Side
from benchmarks.rig.world import WIDTH, denoiser
from torch import Tensor, nn

from quad.build.four_bits.choose_layers import correction_budget, layer_costs
from quad.build.request import CORRECTION_RANK
from quad.compile.artifact import save_graph
from quad.compile.export import GraphSpec, export_graph
from quad.compile.placement.qdq import place_qdq
from quad.compile.targets import load_target
from quad.core.correction import correction_shapes
from quad.core.digests import canonical_json
from quad.core.encoding import Encoding, encode_range
from quad.core.precision import eight_bit_percent
from quad.core.slots import UNET, SlotTable
from quad.core.tensor_names import ATTENTION_ROLES, role_of, weight_name
from quad.evaluate.bench.machine import machine
from quad.evaluate.bench.timing import median
from quad.lora.fit.integers import integer_slots
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import layers_of, weights_of
from quad.model.slots.network import slot_network, slotted_as
from quad.model.slots.skips import split_skips
from quad.model.slots.table import corrected_table
from quad.quantize.correct.layer_choice import four_bit_paths, within_budget
from quad.quantize.correct.mixed_precision import eight_bit_sites
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.encodings.rules import keeps_16_bits, with_eight_bit
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify

PRECISIONS = {"16": {8: "w8a16", 4: "w4a16"}, "mixed": {8: "mixed:80", 4: "w4:mixed:80"}}
RANK, WARM_UP, NO_SLOWER = 16, 2, 1.0
TEN, ROM_RANK = 10, 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is built: width of the U-Net, side of the latent, engines, words of `PRECISIONS`, and which layers are corrected."""

    width: int
    latent: int
    engines: tuple[str, ...]
    activations: tuple[str, ...]
    corrected: str


def corrected_paths(network: nn.Module, narrow: frozenset[str], corrected: str) -> frozenset[str]:
    """Layers that get a correction's slot; random ones, for random weights have no damage to rank by."""
    draw = np.random.default_rng(0)
    costs, _ = layer_costs({UNET: network}, {(UNET, path): draw.random() for path in sorted(narrow)}, CORRECTION_RANK)
    costs = [replace(cost, damage=cost.damage * cost.correction_bytes) for cost in costs]
    least = sum(cost.four_bytes for cost in costs)
    mended = within_budget(costs, least + correction_budget(costs), correction_budget(costs)).corrected
    return {"none": frozenset[str](), "all": narrow}.get(corrected, frozenset(path for _, path in mended))


def graph_of(cache: Path, bits: int, engine: str, activations: str) -> Path:
    """The file of a graph; the slots of its table lie two folders above."""
    return cache / str(bits) / f"{engine}-{activations}" / "graph" / "model.onnx"


def build(cache: Path, plan: Plan) -> None:
    """All graphs, each precision from one float run of its network."""
    torch.manual_seed(0)
    unet = denoiser(plan.width).eval().requires_grad_(False)
    adapter = random_adapter(unet, RANK)
    for bits in (8, 4):
        network, table = slot_network(unet, (adapter,))
        narrow = four_bit_paths(UNET, network) if bits == 4 else frozenset[str]()
        if narrow:
            table = corrected_table(table, COMPONENT, unet, corrected_paths(network, narrow, plan.corrected), CORRECTION_RANK)
            network = slotted_as(unet, nn.Module(), table).unet
        split_skips(network)
        inputs, integers = network_inputs(plan.latent), integer_slots(table, 16)
        slots = {name: torch.from_numpy(array) for name, array in slot_inputs(adapter, table).items()}

        def run(network: nn.Module = network, inputs: dict[str, Tensor] = inputs, slots: dict[str, Tensor] = slots) -> Tensor:
            with torch.no_grad():
                output: Tensor = network(*inputs.values(), slots)
            return output

        statistics = observe({COMPONENT: network}, [Feed("noise", run)])
        names = sorted(statistics.sites[COMPONENT], key=lambda name: (keeps_16_bits(name), role_of(name) not in ATTENTION_ROLES))
        model = export_graph(network, GraphSpec(component=COMPONENT, inputs=inputs, output=OUTPUT, slots=slots))
        for activations in plan.activations:
            chosen = eight_bit_sites(names, eight_bit_percent(PRECISIONS[activations][bits]) or 0.0)
            rules, given = with_eight_bit(chosen, products=True), {COMPONENT: nibbles(network, narrow)}
            options = UnifyOptions(ranges=RangeOptions(method="minmax"), rules=rules, given=given)
            profile = unify(statistics, {COMPONENT: weights_of(network)}, integers, (adapter,), options)
            for engine in plan.engines:
                file = graph_of(cache, bits, engine, activations)
                file.parent.mkdir(parents=True, exist_ok=True)
                target = load_target(TARGETS[engine]).for_profile(profile)
                save_graph(place_qdq(model.clone(), profile.component(COMPONENT), integers, target).model, file)
        (cache / str(bits) / SLOTS_FILE).write_bytes(canonical_json(integers))


def nibbles(network: nn.Module, paths: frozenset[str]) -> dict[str, Encoding]:
    """Encodings of 4 bits by the largest and smallest weight of each channel."""
    encodings = {}
    for path, layer in layers_of(network).items():
        if path in paths:
            rows = layer.weight.reshape(len(layer.weight), -1).numpy()
            encodings[weight_name(path)] = encode_range(rows.min(axis=1), rows.max(axis=1), bits=4, signed=False, symmetric=False, axis=0)
    return encodings


def measure(cache: Path, engine: str, activations: str, options: Any) -> dict[int, dict[str, Any]]:
    """Both sides of one engine and kind of activations: bits -> times, bytes, memory."""
    with ExitStack() as stack:
        sides = {}
        for bits in (8, 4):
            file = graph_of(cache, bits, engine, activations)
            precision = PRECISIONS[activations][bits]
            sides[bits] = stack.enter_context(Side(precision, engine=engine, precision=precision, file=file, threads=options.threads))
        times: dict[int, list[float]] = {bits: [] for bits in sides}
        for turn in range(WARM_UP + options.repeats):
            for bits in sides if turn % 2 else reversed(sides):
                _, ms = sides[bits].ask("timed_step")
                if turn >= WARM_UP:
                    times[bits].append(ms)
        return {
            bits: {
                "median_ms": median(turns), "least_ms": min(turns), "turns_ms": turns, "peak_rss_bytes": sides[bits].ask("rss"),
                "file_bytes": sum(part.stat().st_size for part in graph_of(cache, bits, engine, activations).parent.iterdir()),
            }
            for bits, turns in times.items()
        }  # fmt: skip


def rom_figure(cache: Path, sides: dict[int, dict[str, Any]]) -> Figure:
    """Ten binaries of 8 bits over one graph of 4 with its correction and ten adapters of 16 bits, by their bytes."""
    tables = {bits: msgspec.json.decode((cache / str(bits) / SLOTS_FILE).read_bytes(), type=SlotTable) for bits in sides}
    correction = sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in correction_shapes(tables[4]).values())
    adapters = TEN * ROM_RANK * 2 * sum(slot.in_features + slot.out_features for slot in tables[8].slots)
    ratio = TEN * sides[8]["file_bytes"] / (sides[4]["file_bytes"] + correction + adapters)
    return Figure(
        name=f"ten binaries of 8 bits over one graph of 4 with ten adapters of rank {ROM_RANK}", value=ratio, bar=12.0, unit="x", least=True
    )


def main() -> int:
    """Build where nothing lies yet, and compare."""
    parser = command_line(__doc__)
    parser.add_argument("--width", type=int, default=WIDTH, help=f"channels of the U-Net's first blocks, {WIDTH} in the true one")
    parser.add_argument("--latent", type=int, default=32, help="side of the latent; 32 is a picture of 256 pixels")
    parser.add_argument("--engines", type=lambda text: tuple(text.split(",")), default=tuple(TARGETS), help="of ort,openvino")
    parser.add_argument("--activations", type=lambda text: tuple(text.split(",")), default=tuple(PRECISIONS), help="of 16,mixed")
    parser.add_argument("--corrected", choices=("some", "all", "none"), default="some", help="which layers of 4 bits are corrected")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("out/four_bit_steps"), help="where graphs are kept, 6 GB at the true width")
    options = parser.parse_args()
    plan = Plan(
        width=options.width, latent=options.latent, engines=options.engines, activations=options.activations, corrected=options.corrected
    )  # fmt: skip
    cache = options.cache / f"{plan.width}-{plan.latent}-{plan.corrected}"
    if not all(graph_of(cache, bits, engine, kind).is_file() for bits in (8, 4) for engine in plan.engines for kind in plan.activations):
        process = get_context("spawn").Process(target=build, args=(cache, plan))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("four_bit_steps: the graphs could not be built, see above")
    results, figures = {}, []
    for engine in plan.engines:
        for kind in plan.activations:
            sides = results[f"{engine} {kind}"] = measure(cache, engine, kind, options)
            for bits, side in sides.items():
                sizes = f"{side['file_bytes'] / 1e6:.0f} MB on disk, {side['peak_rss_bytes'] / 1e6:.0f} MB at the peak"
                times = f"{side['median_ms']:8.1f} CPU ms, least {side['least_ms']:.1f}"
                print(f"{engine:9} {PRECISIONS[kind][bits]:12} {times}; {sizes}")
            ratio = median([a / b for a, b in zip(sides[4]["turns_ms"], sides[8]["turns_ms"], strict=True)])
            name = f"{engine}, {PRECISIONS[kind][4]}: a step over {PRECISIONS[kind][8]}"
            figures.append(Figure(name=name, value=ratio, bar=NO_SLOWER, unit="x"))
    if plan.width == WIDTH:
        figures.append(rom_figure(cache, sides))
    print_figures(figures)
    machines = {engine: msgspec.to_builtins(machine(engine, options.threads)) for engine in plan.engines}
    write_report(options.json, {"machine": machines, "width": plan.width, "latent": plan.latent, "steps": results}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
