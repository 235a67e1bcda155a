"""The four graphs that are compared: FP32 and quantized, one for all adapters and merged with one adapter.

The network is Stable Diffusion 1.5's U-Net with random weights, one slot of rank r at each of its 128 attention projections. All graphs
come from quad's own functions, and FP32 graphs go through the target's passes too: what is compared is what the project would ship.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from quad.compile.artifact import save_graph
from quad.compile.export import GraphSpec, export_graph
from quad.compile.placement.qdq import place_float, place_qdq
from quad.compile.targets import load_target
from quad.core.digests import canonical_json
from quad.core.memory import peak_ram_bytes, reset_peak
from quad.core.precision import eight_bit_percent
from quad.core.profile import Profile
from quad.core.slots import SlotTable
from quad.core.tensor_names import ATTENTION_ROLES, role_of
from quad.lora.fit.integers import integer_slots
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, LowRank
from quad.model.slots.layers import weights_of
from quad.model.slots.network import SlottedNetwork, slot_network
from quad.model.slots.skips import split_skips
from quad.quantize.correct.mixed_precision import eight_bit_sites
from quad.quantize.encodings.ranges import RangeOptions
from quad.quantize.encodings.rules import keeps_16_bits, with_eight_bit
from quad.quantize.observe.observers import Feed, observe
from quad.quantize.profile.pooled_profile import UnifyOptions, unify

COMPONENT, OUTPUT = "unet", "out_sample"
TARGETS = {"ort": "cpu", "openvino": "openvino"}
SLOTS_FILE = "slots.json"
MERGED, SHARED = "merged", "one_for_all"
_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
_SEED, _SIZE = 0, 0.02

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The graphs to build: latent side in pixels, rank of every slot, precision of the quantized graphs, and its LoRA bits."""

    latent: int
    rank: int
    precision: str
    lora_bits: int


def _turn(name: str) -> tuple[bool, bool]:
    """Ordinary sites, attention's operands, all others: random weights have no damage to rank by, so all of attention goes to 8 bits."""
    return keeps_16_bits(name), role_of(name) not in ATTENTION_ROLES


def graph_file(cache: Path, kind: str, side: str) -> Path:
    """The file of a graph: kind is `float` or a target."""
    return cache / kind / side / "model.onnx"


def random_unet() -> UNet2DConditionModel:
    """SD1.5's U-Net: the library's default configuration with SD1.5's text width and heads; 860 M random weights."""
    torch.manual_seed(_SEED)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return unet.eval().requires_grad_(False)


def random_adapter(unet: torch.nn.Module, rank: int) -> FloatAdapter:
    """Noise of a LoRA's size for every attention projection."""
    draw = np.random.default_rng(_SEED).standard_normal
    weights = {
        path: LowRank(_SIZE * draw((rank, layer.in_features), np.float32), _SIZE * draw((layer.out_features, rank), np.float32))
        for path, layer in unet.named_modules()
        if path.endswith(_LAYERS) and isinstance(layer, torch.nn.Linear)
    }
    return FloatAdapter(name="noise", weights=weights, rank=rank, digest="")


def merge(unet: torch.nn.Module, adapter: FloatAdapter) -> None:
    """W + B A, in place."""
    for path, pair in adapter.weights.items():
        weight = unet.get_submodule(path).weight
        weight += torch.from_numpy(pair.b @ pair.a)  # type: ignore[operator]


def network_inputs(latent: int) -> dict[str, Tensor]:
    """The inputs of one step, slots apart."""
    generator = torch.Generator().manual_seed(_SEED)
    return {
        "sample": torch.randn(1, 4, latent, latent, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 77, 768, generator=generator),
    }


def build_graphs(cache: Path, shape: Shape, engines: tuple[str, ...], tell: Tell) -> dict[str, dict[str, float]]:
    """Write all graphs; seconds by stage and graph, and the peak of resident memory while a graph was placed, bytes."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    unet = random_unet()
    adapter = random_adapter(unet, shape.rank)
    for side, adapters in ((SHARED, (adapter,)), (MERGED, ())):
        if side == MERGED:
            merge(unet, adapter)
        built = _Built(cache=cache, side=side, shape=shape, seconds=seconds, peaks=peaks, tell=tell)
        built.write_float(built.write(*slot_network(unet, adapters), adapters, engines), engines)
        gc.collect()
    return {"seconds": seconds, "peak_rss_bytes": peaks}


def build_shared(
    cache: Path, shape: Shape, engines: tuple[str, ...], tell: Tell, unet: UNet2DConditionModel | None = None
) -> dict[str, dict[str, float]]:
    """Write the quantized graphs that are one for all adapters, no others; as `build_graphs`.

    Args:
        unet: in place of Stable Diffusion 1.5's.
    """
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    unet = unet or random_unet()
    adapters = (random_adapter(unet, shape.rank),)
    built = _Built(cache=cache, side=SHARED, shape=shape, seconds=seconds, peaks=peaks, tell=tell)
    built.write(*slot_network(unet, adapters), adapters, engines)
    return {"seconds": seconds, "peak_rss_bytes": peaks}


@dataclass(frozen=True, kw_only=True)
class _Built:
    """One side's graphs in the making."""

    cache: Path
    side: str
    shape: Shape
    seconds: dict[str, float]
    peaks: dict[str, float]
    tell: Tell

    def write(self, network: SlottedNetwork, table: SlotTable, adapters: tuple[FloatAdapter, ...], engines: tuple[str, ...]) -> ir.Model:
        """The quantized graphs; the float one that they were made of is given back."""
        split_skips(network)
        inputs = network_inputs(self.shape.latent)
        slots = {name: torch.from_numpy(array) for name, array in slot_inputs(adapters[0], table).items()} if adapters else {}
        integers = integer_slots(table, self.shape.lora_bits)
        profile = self._timed("profile", lambda: self._profile(network, integers, adapters, inputs, slots))
        model = self._timed(
            "export", lambda: export_graph(network, GraphSpec(component=COMPONENT, inputs=inputs, output=OUTPUT, slots=slots))
        )
        for engine in engines:
            target = load_target(TARGETS[engine]).for_profile(profile)
            encodings = profile.component(COMPONENT)
            placed = self._placed(target.name, lambda: place_qdq(model.clone(), encodings, integers, target).model)  # noqa: B023
            save_graph(placed, self._file(target.name))
        if adapters:
            (self.cache / SLOTS_FILE).write_bytes(canonical_json(integers))
        return model

    def write_float(self, model: ir.Model, engines: tuple[str, ...]) -> None:
        """The float graph, of `write`."""
        passes = load_target(TARGETS[engines[0]]).passes
        save_graph(self._placed("float", lambda: place_float(model, passes).model), self._file("float"))

    def _profile(self, network: SlottedNetwork, table: SlotTable, adapters: tuple[FloatAdapter, ...], inputs: dict[str, Tensor],
                 slots: dict[str, Tensor]) -> Profile:  # fmt: skip
        """Ranges of one float run; ordinary sites go to 8 bits first, as in a build."""

        def run() -> Tensor:
            with torch.no_grad():
                output: Tensor = network(*inputs.values(), slots)
            return output

        statistics = observe({COMPONENT: network}, [Feed("noise", run)])
        names = sorted(statistics.sites[COMPONENT], key=_turn)
        chosen = eight_bit_sites(names, eight_bit_percent(self.shape.precision) or 0.0)
        options = UnifyOptions(
            lora_bits=self.shape.lora_bits, ranges=RangeOptions(method="minmax"), rules=with_eight_bit(chosen, products=True)
        )
        return unify(statistics, {COMPONENT: weights_of(network)}, table, adapters, options)

    def _file(self, kind: str) -> Path:
        path = graph_file(self.cache, kind, self.side)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _placed(self, kind: str, work: Callable[[], T]) -> T:
        reset_peak()
        placed = self._timed(f"place {kind}", work)
        self.peaks[f"{self.side}, place {kind}"] = peak_ram_bytes()
        return placed

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        self.tell(f"{self.side}: {stage}")
        start = perf_counter()
        outcome = work()
        self.seconds[f"{self.side}, {stage}"] = perf_counter() - start
        return outcome
