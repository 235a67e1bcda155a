"""The shallow U-Net of a bundle answers as the whole one does, at the step that its deep feature is of."""

from __future__ import annotations

import numpy as np

from quad.core.errors import BackendError, mismatch
from quad.core.extra_graphs import DEEP_FEATURE, SHALLOW_UNET
from quad.core.manifest import BundleManifest
from quad.core.slots import UNET
from quad.runtime.pipeline import QuadPipeline

LARGEST_ERROR = 0.02  # of the output's RMS: an engine fuses the two graphs each its own way
TIMESTEP = 500.0


def check_shallow(pipe: QuadPipeline) -> None:
    """Compare both graphs, with the base and with each adapter, which stay bound to the base.

    Raises:
        BackendError: they differ.
    """
    whole, shallow, draw = pipe.graph(UNET), pipe.graph(SHALLOW_UNET), np.random.default_rng(0)
    shapes = {name: [n or 1 for n in shape] for name, shape in whole.inputs.items() if "lora" not in name}
    inputs = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["timestep"][:] = TIMESTEP
    for adapter in (None, *pipe.adapters):
        pipe.set_adapters(adapter) if adapter is not None else pipe.disable_lora()
        output, deep = whole.run_all(inputs)
        answer = shallow.run({**{name: array for name, array in inputs.items() if name in shallow.inputs}, DEEP_FEATURE: deep})
        error = float(np.sqrt(np.mean(np.square(answer - output)) / np.mean(np.square(output))))
        if not error <= LARGEST_ERROR:
            where = f"graph {SHALLOW_UNET}, {adapter or 'the base'}"
            raise BackendError(mismatch(where, f"the U-Net's answer within {LARGEST_ERROR:g}", f"{error:.3g}", "build without --reuse"))
    pipe.disable_lora()


def shallow_notes(manifest: BundleManifest) -> tuple[str, ...]:
    """A line on the bytes of the second graph; none where there is none."""
    part = manifest.components.get(SHALLOW_UNET)
    if part is None:
        return ()
    return (f"reuse: the shallow U-Net takes {manifest.files[part.file].size_bytes / 1e3:.0f} kB, over the same weights",)
