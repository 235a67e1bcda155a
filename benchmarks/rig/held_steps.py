"""The steps of a build that hold weights, one after another without its calls, and the memory of each by the parameter."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from quad.compile.artifact import save_graph
from quad.compile.export import export_graph
from quad.compile.graph_specs import unet_spec
from quad.compile.placement.qdq import place_qdq
from quad.compile.targets import load_target
from quad.core.memory import peak_ram_bytes, release_memory, reset_peak
from quad.core.profile import Profile
from quad.core.slots import UNET
from quad.core.tensor_names import weight_name
from quad.model.base.modules import share_copy
from quad.model.base.open import BaseOptions, open_model
from quad.model.slots.layers import apply_integers, layers_of, weight_array, weights_of
from quad.model.slots.network import slot_network
from quad.quantize.correct.simulate import mark_lattice, simulated
from quad.quantize.profile.pooled_profile import UnifyOptions, byte_weights


class Steps:
    """Peaks of steps, bytes beyond what was resident before the first."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        gc.collect()
        release_memory()
        reset_peak()
        self._base = peak_ram_bytes()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The peak of what the block does; what was garbage before it does not count."""
        gc.collect()
        release_memory()
        reset_peak()
        yield
        self.peaks[name] = peak_ram_bytes() - self._base


def held_steps(model: Path, scratch: Path, *, compact: bool) -> dict[str, Any]:
    """Open, slot, choose ranges, simulate, round, apply, export, place and write a U-Net, its weights rounded to the nearest.

    Args:
        compact: weights are held as a build holds those of a large model, however small this one is; else in float32.

    Returns:
        `parameters`, and `peaks` by step in bytes.
    """
    step = Steps()
    with step("open"):
        base = open_model(model, BaseOptions(compact_from=0 if compact else None))
    parameters = sum(tensor.numel() for part in (base.unet, base.text_encoder, base.vae) for tensor in part.parameters())
    with step("slot"):
        network, table = slot_network(base.unet, ())
        teacher, base = share_copy(network), replace(base, unet=network.unet)
    with step("ranges"):
        encodings = byte_weights({UNET: weights_of(network)}, UnifyOptions())[UNET]
    with step("simulate"), simulated(network, Profile(encodings={UNET: encodings}, mode="float", parents={}), UNET):
        pass
    layers = {path: layer for path, layer in layers_of(network).items() if weight_name(path) in encodings}
    with step("round"):
        rounded = {path: encodings[weight_name(path)].quantize(weight_array(layer)) for path, layer in layers.items()}
    with step("apply"):
        for path, layer in layers.items():
            apply_integers(layer, rounded[path], encodings[weight_name(path)])
            mark_lattice(layer.weight, encodings[weight_name(path)])
    del rounded, teacher
    with step("export"):
        graph = export_graph(network, unet_spec(base, table))
    with step("place"):
        placed = place_qdq(graph, encodings, table, load_target("cpu"))
    del graph
    with step("write"):
        save_graph(placed.model, scratch / "model.onnx")
    return {"parameters": parameters, "peaks": step.peaks}
