"""Golden outputs: a device tries an adapter on a stored call of the U-Net before it trusts it.

A bundle holds a few calls (`probes.safetensors`: `<i>/sample`, `<i>/timestep`, `<i>/encoder_hidden_states`). An adapter's manifest holds
what the U-Net answers to one of them with this adapter bound, as means over blocks of the output: a few dozen numbers. Engines and numbers
of threads move them by some rounding steps, another adapter by far more.

Measured on the reference model (w8a16, five adapters, four probes; difference of one block mean over the RMS of all): ONNX Runtime with 1
and 2 threads 0.0008, loaded lean 0.0017, OpenVINO against it 0.0020, another adapter or the base 0.027 at the least.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.core.component_call import UNET_INPUTS, Inputs
from quad.core.errors import CompatibilityError, VerificationError, mismatch
from quad.core.manifest import PROBES_FILE, AdapterManifest, Golden
from quad.core.slots import UNET
from quad.core.storage.tensor_file import map_tensors
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Runnable

GRID = 4  # blocks along each side of the output
TOLERANCE = 0.02  # of the RMS of the block means


def read_probes(bundle: Bundle) -> tuple[Inputs, ...]:
    """The bundle's stored calls of the U-Net, ready for `Session.run`.

    Raises:
        CompatibilityError: the bundle is of an older build and has none.
        VerificationError: the file is no such thing.
    """
    if PROBES_FILE not in bundle.manifest.files:
        where, expected = f"bundle {bundle.name!r}", f"stored calls of the U-Net ({PROBES_FILE})"
        raise CompatibilityError(mismatch(where, expected, "none, it is of an older build", "build it again"))
    return calls_of(bundle.path(PROBES_FILE))


def calls_of(file: Path) -> tuple[Inputs, ...]:
    """The calls that a file holds, one at least.

    Raises:
        VerificationError: it is no such file.
    """
    tensors = map_tensors(file).tensors
    names = {f"{index}/{name}" for index in range(len(tensors) // len(UNET_INPUTS)) for name in UNET_INPUTS}
    fit = all(array.dtype == np.float32 and np.isfinite(array).all() for array in tensors.values())
    if not tensors or names != tensors.keys() or not fit:
        expected = f"finite float32 <i>/{', <i>/'.join(UNET_INPUTS)}"
        raise VerificationError(mismatch(str(file), expected, ", ".join(sorted(tensors)[:4]) or "nothing", "build the bundle again"))
    return tuple({name: tensors[f"{index}/{name}"] for name in UNET_INPUTS} for index in range(len(tensors) // len(UNET_INPUTS)))


def block_means(output: NDArray[Any], grid: int = GRID) -> NDArray[np.float64]:
    """Means `(C * blocks,)` of an output `(1, C, h, w)` over `grid` by `grid` blocks, fewer where it has fewer pixels; the axes are split
    as `numpy.array_split` does."""
    rows, columns = (np.array_split(np.arange(size), min(grid, size)) for size in output.shape[2:])
    means = [[output[0, :, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean(axis=(1, 2), dtype=np.float64) for c in columns] for r in rows]
    return np.stack([np.stack(row, axis=1) for row in means], axis=1).ravel()


def unet_buffers(bundle: Bundle, buffers: Buffers) -> Buffers:
    """Of an adapter's buffers those that the U-Net takes."""
    return Buffers((name, buffers[name]) for name in bundle.slots.of(UNET).input_shapes())


def golden(where: str, network: Runnable, call: Inputs, probe: int) -> Golden:
    """The U-Net's answer to a call with the adapters that are bound; the call is probe number `probe`.

    Raises:
        VerificationError: with NaN or Inf; the message begins with `where`.
    """
    return _golden(_answer(where, network, call), probe)


def golden_of(output: NDArray[Any], probe: int) -> Golden:
    """The U-Net's finite answer to probe number `probe`, as it is stored."""
    return _golden(block_means(output), probe)


def rounded(values: NDArray[np.floating[Any]]) -> tuple[float, ...]:
    """As they are stored: float32."""
    return tuple(float(np.float32(value)) for value in values.ravel())


def _golden(means: NDArray[np.float64], probe: int) -> Golden:
    return Golden(probe, rounded(means), float(np.float32(TOLERANCE * np.sqrt(np.square(means).mean()))))


def _probe(bundle: Bundle, number: int) -> Inputs:
    probes = read_probes(bundle)
    if number >= len(probes):
        where, next_step = f"bundle {bundle.name!r}", "fetch the adapter for this bundle"
        raise VerificationError(mismatch(where, f"a probe {number}", f"{len(probes)} of them", next_step))
    return probes[number]


def _answer(where: str, network: Runnable, call: Inputs) -> NDArray[np.float64]:
    output = network.run(call)
    if not np.isfinite(output).all():
        raise VerificationError(mismatch(where, "an answer of finite numbers to a stored probe", "NaN or Inf", "do not use the adapter"))
    return block_means(output)


def distance(stored: Golden, means: NDArray[np.float64]) -> float:
    """Largest difference of one value; infinite where there is another number of them."""
    values = np.asarray(stored.values)
    return float(np.abs(values - means).max(initial=0.0)) if values.shape == means.shape else float("inf")


def check_golden(network: Runnable, bundle: Bundle, manifest: AdapterManifest) -> None:
    """Compare the U-Net's answer with the adapter's golden one; a manifest without one passes.

    Args:
        network: the bundle's U-Net, the adapter bound.

    Raises:
        VerificationError: it answers otherwise.
    """
    stored, where = manifest.golden, f"adapter {manifest.name!r}"
    if stored is msgspec.UNSET:
        return
    call = _probe(bundle, stored.probe)
    off = distance(stored, _answer(where, network, call))
    if not off <= stored.tolerance:
        where, expected = f"{where} on probe {stored.probe}", f"its golden output within {stored.tolerance:.3g}"
        raise VerificationError(mismatch(where, expected, f"{off:.3g} away", "fetch the adapter again, it is not what it was tested as"))
