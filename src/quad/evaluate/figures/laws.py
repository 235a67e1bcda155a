"""Laws that every bundle must keep, measured on this one. Source: docs/architecture.md, laws 2 and 4."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quad.core.manifest import TaskSpec
from quad.evaluate.figures.reference import Reference
from quad.lora.fit.slot_inputs import slot_inputs
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.slots.network import slot_networks
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.pipeline import QuadPipeline

PROMPT = "a red house and a tree"
HEAVY = ("torch", "diffusers", "transformers", "onnx")
IMPORT = """
import json, sys, time
start = time.perf_counter()
import quad.runtime.pipeline
print(json.dumps({"seconds": time.perf_counter() - start, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


class RuntimeImport(msgspec.Struct, frozen=True):
    """Seconds to import the runtime in a fresh interpreter, and the heavy packages that it dragged in."""

    seconds: float
    heavy: list[str]


class Laws(msgspec.Struct, frozen=True, kw_only=True):
    """`laws` of the demo's `eval.json`.

    Args:
        slotted: by adapter, of `slotted_error`.
        switching: law -> holds, of `switching_is_exact`.
    """

    slotted: dict[str, float]
    switching: dict[str, bool]
    runtime_import: RuntimeImport = msgspec.field(name="import")


def _last_latent(pipe: QuadPipeline, task: str, spec: TaskSpec) -> NDArray[np.float32]:
    """The latent that one run ends with: finer than the picture's 8 bits."""
    grid = pipe.bundle.manifest.picture_size.grid
    image = None if not spec.reads_picture else np.full((*grid, 3), 90, np.uint8)
    mask = np.full(grid, 255, np.uint8) if spec.mask == "input" else None
    latents: list[NDArray[np.float32]] = []

    def keep(_: QuadPipeline, __: int, ___: float, state: dict[str, Any]) -> None:
        latents.append(np.array(state["latents"]))

    pipe("", task=task, image=image, mask_image=mask, seed=3, callback_on_step_end=keep)
    return latents[-1]


def switching_is_exact(pipe: QuadPipeline) -> dict[str, bool]:
    """Law 4: A -> B -> A gives A's latent bit for bit, and base after unload gives the base's."""
    names = list(pipe.adapters)
    tasks = {spec.adapter: (task, spec) for task, spec in pipe.tasks.items()}
    if None not in tasks or len(names) < 2:
        return {}
    task, spec = tasks[None]
    pipe.disable_lora()
    base = _last_latent(pipe, task, spec)
    latents = []
    for name in (names[0], names[1], names[0]):
        pipe.set_adapters(name)
        latents.append(_last_latent(pipe, task, spec))
    pipe.disable_lora()
    base_again = _last_latent(pipe, task, spec)
    adapters_differ = not np.array_equal(latents[0], latents[1]) and not np.array_equal(latents[0], base)
    return {
        "a_b_a": adapters_differ and bool(np.array_equal(latents[0], latents[2])),
        "base_after_unload": adapters_differ and bool(np.array_equal(base, base_again)),
    }


def slotted_error(directory: Path, adapters: dict[str, Path], reference: Reference) -> dict[str, float]:
    """Law 2, per adapter: largest difference of a float slotted network from diffusers + PEFT, over the output's RMS.

    Of the U-Net and, where adapters reach it, the text encoder.
    """
    base = open_model(directory)
    loaded = [read_adapter(name, file, base.unet, text_encoder=base.text_encoder) for name, file in adapters.items()]
    slotted = slot_networks(base.unet, base.text_encoder, loaded)
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(1, 2 * base.latent.channels + 1, *base.latent.grid(base.picture_size), generator=generator)
    words = torch.randn(1, base.text.rows, base.text.hidden, generator=generator)
    ids = torch.from_numpy(Tokenizer(base.tokenizer, base.text)(PROMPT).ids)
    errors = {}
    for adapter in loaded:
        slots = {name: torch.from_numpy(np.asarray(value)) for name, value in slot_inputs(adapter, slotted.table).items()}
        with torch.inference_mode():
            ours = slotted.unet(sample, torch.tensor([400.0]), words, slots)
        error = _distance(ours, reference.network_output(adapter.name, sample, 400.0, words))
        if slotted.text_encoder is not None:
            with torch.inference_mode():
                hidden = slotted.text_encoder(ids, slots=slots)
            error = max(error, _distance(hidden, reference.words([PROMPT])[:, : hidden.shape[1]]))
        errors[adapter.name] = error
    return errors


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.square().mean().sqrt())


def runtime_import(tries: int = 3) -> RuntimeImport:
    """Import the runtime in fresh interpreters; the seconds are the best of `tries`."""
    imports = []
    for _ in range(tries):
        process = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        imports.append(json.loads(process.stdout.splitlines()[-1]))
    heavy = [name for name in HEAVY if name in imports[0]["modules"]]
    return RuntimeImport(min(entry["seconds"] for entry in imports), heavy)
