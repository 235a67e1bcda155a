"""For adapters to come: a few calls of the U-Net, and what the build wrote into the network beside its encodings.

Of the calls an adapter is tried on when it is admitted, and its golden output is taken on one of them. The corrections (biases, and the
gains of equalized norms) make the simulated network of this build again out of the base, for who aligns an adapter with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import ref

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor, nn

from quad.build.calls.call_recorder import spread
from quad.core.component_call import UNET_INPUTS, Inputs
from quad.core.manifest import CORRECTIONS_FILE, PROBES_FILE
from quad.core.slots import SlotTable
from quad.core.tensor_names import Role, bias_name, gain_name, paths_with, role_of, rounding_name
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.model.slots.layers import layers_of
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.observe.probes import Probe, ProbeOptions, Probes, record_probes

STORED = 4
Before = Mapping[str, tuple["ref[Tensor]", "ref[Tensor] | None"]]  # layer path -> its weight and bias as they were


@dataclass(frozen=True)
class Corrections:
    """Of the U-Net.

    Args:
        biases: `<module path>.bias` -> corrected bias `(out,)`.
        gains: layer path -> gain of each input channel `(in,)`.
        compensated: paths of layers whose weights are rounded with compensation: what they are, only the graph knows.
    """

    biases: Mapping[str, NDArray[np.float32]]
    gains: Mapping[str, NDArray[np.float32]]
    compensated: tuple[str, ...] = ()

    @staticmethod
    def since(before: Before, network: nn.Module, gains: Mapping[str, Sequence[float]]) -> Corrections:
        """Biases and weights of the network that are others than they were."""
        layers = layers_of(network)
        biases = {
            bias_name(path): layer.bias.detach().float().cpu().numpy()
            for path, layer in layers.items()
            if layer.bias is not None and ((bias := before[path][1]) is None or bias() is not layer.bias)
        }
        compensated = tuple(path for path, layer in layers.items() if before[path][0]() is not layer.weight)
        return Corrections(biases, {path: np.asarray(gain, np.float32) for path, gain in gains.items()}, compensated)

    @staticmethod
    def read(data: bytes) -> Corrections:
        """Of the bytes of a file whose digest was compared."""
        arrays = load(data)
        biases = {name: array for name, array in arrays.items() if role_of(name) is Role.BIAS}
        gains = {path: arrays[gain_name(path)] for path in paths_with(Role.GAIN, arrays)}
        return Corrections(biases, gains, tuple(paths_with(Role.ROUNDING, arrays)))

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        rounding = {rounding_name(path): np.ones(1, np.uint8) for path in self.compensated}
        return save({**self.biases, **{gain_name(path): gain for path, gain in self.gains.items()}, **rounding})


def layers_now(network: nn.Module) -> Before:
    """Every layer's weight and bias, to be told from those that take their place; nobody holds them in memory for that."""
    return {
        path: (ref(layer.weight), None if layer.bias is None else ref(layer.bias)) for path, layer in layers_of(network).items()
    }  # fmt: skip


def admission_files(probes: Sequence[Inputs], corrections: Corrections | None) -> dict[str, bytes]:
    """File name -> content; what is empty is left out."""
    files: dict[str, bytes] = {}
    if probes:
        files[PROBES_FILE] = save(
            {f"{i}/{name}": np.ascontiguousarray(call[name]) for i, call in enumerate(probes) for name in UNET_INPUTS}
        )
    if corrections is not None:
        files[CORRECTIONS_FILE] = corrections.to_bytes()
    return files


def chosen_calls(probes: Probes, grid: tuple[int, int]) -> list[Inputs]:
    """`STORED` calls of one picture each, of different adapters where there are so many, from the first step of a run to the last.

    Args:
        probes: source -> calls along its runs, in order.
        grid: rows and columns of the graph's latent; calls of smaller pictures are laid side by side to that size.
    """
    sources = spread([name for name, calls in probes.items() if calls], STORED)
    chosen = []
    for index in range(STORED if sources else 0):
        calls = probes[sources[index % len(sources)]]
        first = [probe for probe in calls if probe.run == calls[0].run]
        chosen.append(_single(first[round(index / (STORED - 1) * (len(first) - 1))], grid))
    return chosen


def few_probes(base: Base, networks: Mapping[str, nn.Module], table: SlotTable, adapters: Sequence[FloatAdapter],
               samples: Sequence[CalibrationSample]) -> Probes:  # fmt: skip
    """One run of the first adapter that has a sample, where nobody else asks for probes; nothing where none has."""
    for adapter in adapters:
        if mine := [sample for sample in samples if (sample.adapter or base.tasks[sample.task].adapter) == adapter.name]:
            return record_probes(base, networks, table, [adapter], mine[:1], ProbeOptions(per_adapter=1))
    return {}


def _single(probe: Probe, grid: tuple[int, int]) -> Inputs:
    """The last of a call's sides: with the prompt, and with the picture."""
    sample = probe.inputs["sample"][-1:]
    rows, columns = grid
    sample = np.tile(sample, (1, 1, -(-rows // sample.shape[2]), -(-columns // sample.shape[3])))[:, :, :rows, :columns]
    return {"sample": sample, "timestep": probe.inputs["timestep"], "encoder_hidden_states": probe.inputs["encoder_hidden_states"][-1:]}
