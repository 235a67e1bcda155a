"""The speed LoRA of a reference model: 4 steps against 16, alone and stacked, in full precision and from a bundle.

    python -m benchmarks.speed BUNDLE [--model toyland-xl] [--n 32] [-o out/speed] [--json FILE]

Full precision is diffusers and PEFT with the same adapters. Of each stack: pictures against the 16-step teacher, the bundle's against full
precision, and how the effect of both adapters together comes through, at the U-Net's output along the float runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from benchmarks.rig.figures import Figure
from benchmarks.rig.report import command_line, print_figures, write_report
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from quad.admit.slots import fit
from quad.core.component_call import split_batch
from quad.core.sampling import AdapterDefaults
from quad.evaluate.figures.effect import Effect, effect_of, open_unet, unet_output
from quad.evaluate.figures.paired import extract, pair_figures
from quad.evaluate.figures.quality import held_out, picture_requests
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.evaluate.figures.runs import CONTROL_SEED, bundle_pictures
from quad.evaluate.figures.scores import score
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.quantize.observe.probes import Probe
from quad.runtime.adapter_defaults import with_defaults
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.request import TEXT_TO_IMAGE
from quad.zoo.judge import Judge
from quad.zoo.reference import MODELS, NAME, reference_adapters, reference_dir, shipped_adapter
from quad.zoo.samples import Sample

SPEED = "speed"
STACKED = {"toyland": ("sticker", "portrait", "transform"), "toyland-xl": ("portrait", "transform")}
EFFECT_SAMPLES, SHOWN = 4, 4
GRID = (
    "teacher, 16 steps",
    "speed, 4 steps",
    "speed, 4 steps, bundle",
    "without speed, lcm, 4 steps",
    "speed, 1 step",
    "without speed, lcm, 1 step",
)
Pictures = NDArray[np.uint8]


class RecordingReference(Reference):
    """Full precision that keeps the inputs and outputs of the U-Net's calls."""

    calls: list[tuple[Tensor, float, Tensor, NDArray[np.float32]]]

    def _predict(self, latent: Tensor, extra: Tensor, t: float, words: Tensor) -> NDArray[np.float32]:
        output = super()._predict(latent, extra, t, words)
        self.calls.append((torch.cat([latent, extra], dim=1), t, words, output))
        return output


def held_energy(bundle: Bundle, model: str) -> float:
    """Share of the speed LoRA's update, by sum of squares, that the bundle's slots hold: after cutting to their ranks and rounding."""
    adapter = read_adapter(SPEED, shipped_adapter(SPEED, model), open_model(reference_dir(model)).unet)
    fitted = fit(adapter, bundle.slots, bundle.profile)
    return fitted.applied * (1 - 10 ** (-(fitted.product_db or np.inf) / 10))


class Measurement:
    """Both sides of everything that is measured."""

    def __init__(self, bundle: Path, model: str, n: int) -> None:
        self.pipe, self.judge, self.n = QuadPipeline.from_pretrained(bundle), Judge.load(), n
        self.reference = RecordingReference(reference_dir(model), {**reference_adapters(model), SPEED: shipped_adapter(SPEED, model)})
        self.blocks: list[Pictures] = []

    def samples(self, task: str, n: int) -> list[Sample]:
        """The first held-out ones, of the model's size."""
        return held_out(task, n, self.reference.picture_size.width)

    def made(self, task: str, requests: Sequence[PictureRequest], sampler: str, *adapters: str) -> Pictures:
        """Pictures in full precision; `lcm` has guidance 1, any other sampler the task's."""
        self.reference.calls = []
        spec = with_defaults(self.pipe.tasks[task], AdapterDefaults(sampler=sampler), self.pipe.bundle.manifest.samplers or {})
        return self.reference.pictures(task, requests, spec, adapters)

    def task(self, task: str) -> dict[str, Any]:
        """The figures of one task, text-to-image or one with its own adapter, with a block of the grid: a row for each side of `GRID`."""
        own = () if task == TEXT_TO_IMAGE else (task,)
        samples = self.samples(task, self.n)
        requests, again = picture_requests(samples), picture_requests(samples, CONTROL_SEED)
        self.pipe.set_adapters([SPEED, *own])
        quantized, _ = bundle_pictures(self.pipe, task, requests)
        sides = {
            "teacher, 16 steps": self.made(task, requests, "ddim:16", *own),
            "teacher, another seed": self.made(task, again, "ddim:16", *own),
            "speed, 4 steps": self.made(task, requests, "lcm:4", SPEED, *own),
            "speed, 4 steps, bundle": quantized,
            "without speed, lcm, 4 steps": self.made(task, requests, "lcm:4", *own),
            "without speed, ddim, 4 steps": self.made(task, requests, "ddim:4", *own),
            "speed, 1 step": self.made(task, requests, "lcm:1", SPEED, *own),
            "without speed, lcm, 1 step": self.made(task, requests, "lcm:1", *own),
        }
        self.blocks.append(np.concatenate([np.concatenate(list(sides[name][:SHOWN]), axis=1) for name in GRID]))
        features = {name: extract(pictures, self.judge) for name, pictures in sides.items()}
        teacher, full = features["teacher, 16 steps"], features["speed, 4 steps"]
        figures: dict[str, Any] = {"n": self.n, "bundle against full precision": pair_figures(full, features["speed, 4 steps, bundle"])}
        for name, pictures in sides.items():
            figures[name] = {"teacher": pair_figures(teacher, features[name]), "truth": score(task, samples, pictures, self.judge)}
        effect = self.effect(task, own)
        return {**figures, "effect": {"gain": effect.gain, "sqnr_db": effect.capped_db}}

    def effect(self, task: str, own: Sequence[str]) -> Effect:
        """How the effect of all active adapters comes through, at the U-Net's output along float runs of the stack."""
        self.made(task, picture_requests(self.samples(task, EFFECT_SAMPLES)), "lcm:4", SPEED, *own)
        calls, true, quantized = list(self.reference.calls), [], []
        session, store = open_unet(self.pipe.bundle, self.pipe.engine), AdapterStore(self.pipe.bundle)
        active, _ = store.mix([SPEED, *own], [1.0] * (1 + len(own)))
        for sample, t, words, output in calls:
            true.append(output - self.reference.network_output(None, sample, t, words).numpy())
            inputs = {"sample": sample.numpy(), "timestep": np.array([t], np.float32), "encoder_hidden_states": words.numpy()}
            for row in split_batch(inputs):
                probe = Probe(source=SPEED, inputs=row, task=task, run=0, sigma_t=0.0)
                quantized.append(unet_output(session, active, probe) - unet_output(session, store.mix([], [])[0], probe))
        effect = effect_of([np.concatenate(true)], [np.concatenate(quantized)])
        assert effect is not None
        return effect


def main() -> None:
    """Measure text-to-image and all stacks, print the bars and draw the grid."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path, help="of the model, with its adapters and speed")
    parser.add_argument("--model", choices=MODELS, default=NAME, help="the reference model")
    parser.add_argument("--n", type=int, default=32, help="held-out samples a task")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/speed"), help="where grid.png goes")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(options.bundle, options.model, options.n)
    report: dict[str, Any] = {"held_energy": held_energy(measurement.pipe.bundle, options.model)}
    tasks = (TEXT_TO_IMAGE, *STACKED[options.model])
    for task in tasks:
        report[task] = measurement.task(task)
        print(task, msgspec.json.encode(report[task]).decode(), file=sys.stderr)
    halves = (measurement.blocks[:2], measurement.blocks[2:])
    grid = np.concatenate([np.concatenate(half, axis=1) for half in halves if len(half) == 2])
    Image.fromarray(grid).save(options.output / "grid.png", optimize=True)
    figures = [Figure(name="energy of the speed LoRA that the slots hold", value=report["held_energy"], bar=0.99, least=True)]
    for task in tasks:
        off = abs(report[task]["effect"]["gain"] - 1)
        figures.append(Figure(name=f"gain of the stack, {task}, off 1 by", value=off, bar=0.02))
    print_figures(figures)
    write_report(options.json, report, figures)


if __name__ == "__main__":
    main()
