"""Stable Diffusion 1.5's U-Net of random weights as LiteRT's `dynamic-w8` file: weights of 8 bits, floats between, LoRA as float inputs."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import torch
from benchmarks.rig.graphs import COMPONENT, OUTPUT, SHARED, network_inputs, random_adapter, random_unet

from quad.compile.artifact import TFLITE_FILE
from quad.compile.export import GraphSpec, export_graph
from quad.compile.litert.float_graph import place_weights
from quad.compile.passes import passes_before, run_passes, unobserved
from quad.compile.placement.integer_graph import with_sinusoid
from quad.compile.targets import load_target
from quad.core.digests import canonical_json
from quad.core.memory import peak_ram_bytes
from quad.core.ports import PORTS_FILE, Sinusoid
from quad.core.storage.files import write_bytes
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_network
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.profile.pooled_profile import UnifyOptions, byte_weights


def tflite_file(cache: Path) -> Path:
    """Where it lies beside the graphs of other engines."""
    return cache / "litert" / SHARED / TFLITE_FILE


def write_litert(cache: Path, latent: int, rank: int) -> dict[str, float]:
    """Build and write it: seconds in all, those of placing, lowering and writing, and the peak of resident memory in bytes."""
    from quad.compile.litert.flatbuffer import serialize  # these import LiteRT, an extra
    from quad.compile.litert.rules import lower

    start = perf_counter()
    unet = random_unet()
    adapter = random_adapter(unet, rank)
    network, table = slot_network(unet, (adapter,))
    slots = {name: torch.from_numpy(array) for name, array in slot_inputs(adapter, table).items()}
    inputs, target = network_inputs(latent), load_target("litert")
    model = export_graph(network, GraphSpec(component=COMPONENT, inputs=inputs, output=OUTPUT, slots=slots))
    encodings = byte_weights({COMPONENT: weights_of(network)}, UnifyOptions(ranges=RangeOptions(method="minmax")))[COMPONENT]
    exported = perf_counter()
    placed = place_weights(run_passes(model, passes_before(target.passes)), encodings, target, unobserved)
    graph = with_sinusoid(placed, Sinusoid(channels=int(unet.config["block_out_channels"][0])))
    content, file = serialize(lower(graph.model)), tflite_file(cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file.with_name(PORTS_FILE), canonical_json(graph.ports))
    write_bytes(file, content)
    done = perf_counter()
    return {"seconds": done - start, "place_seconds": done - exported, "peak_rss_bytes": peak_ram_bytes(), "bytes": len(content)}
