"""How near bundles of one model come to the float network on calls that are the same for all of them.

A build measures its adapters on calls of its own, and another draw of the noise moves that mean by up to 1.9 dB: two builds compare on
common calls alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quad.core.component_call import split_batch
from quad.core.decibels import sqnr_db
from quad.core.slots import UNET
from quad.model.adapters import read_adapter
from quad.model.base.open import BaseOptions, open_model
from quad.model.slots.network import slot_networks
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import Probe, ProbeOptions, record_probes
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.request import TEXT_TO_IMAGE, Request

SEED = 50_000  # other noise than any stage of a build draws
PROMPTS = ("a lighthouse on a cliff in the evening", "two people at a table by the window")  # a run each
STEPS = 5


def common_calls(model: Path, adapters: Mapping[str, Path], size: int) -> dict[str, Sequence[Probe]]:
    """Adapter -> calls of the float network along its runs, with its answers.

    Args:
        size: of the pictures, pixels.
    """
    base = open_model(model, BaseOptions(size=size, compact_from=0))
    loaded = [read_adapter(name, path, base.unet, text_encoder=base.text_encoder) for name, path in adapters.items()]
    slotted = slot_networks(base.unet, base.text_encoder, loaded)
    networks = component_networks(base, slotted.unet, slotted.text_encoder)
    samples = [CalibrationSample(task=TEXT_TO_IMAGE, prompt=prompt, adapter=name, steps=STEPS) for name in adapters for prompt in PROMPTS]
    return dict(record_probes(base, networks, slotted.table, loaded, samples, ProbeOptions(per_adapter=len(PROMPTS), seed=SEED)))


def common_db(bundle: Path, calls: Mapping[str, Sequence[Probe]]) -> dict[str, float]:
    """Adapter -> SQNR of the bundle's U-Net on the calls, pooled over them."""
    pipe = QuadPipeline.from_pretrained(bundle, verify=False)
    graph = pipe.graph(UNET)
    kept = {}
    with graph.loaded():
        for name, probes in calls.items():
            graph.bind(pipe.switch.resolve_mix(Request(task=TEXT_TO_IMAGE, adapters={name: 1.0}))[1])
            signal = noise = 0.0
            for probe in probes:
                y = np.asarray(probe.expected, np.float64)
                y_hat = np.concatenate([graph.run(row) for row in split_batch(probe.inputs)]).astype(np.float64)
                signal, noise = signal + float(np.square(y).sum()), noise + float(np.square(y_hat - y).sum())
            kept[name] = sqnr_db(signal, noise)
    return kept
