"""SDXL with 8-bit weights, reuse, and an adapter of both text encoders and the size embedding: near to diffusers' own picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.core.slots import TEXT_ENCODER, UNET
from quad.quantize.encodings.ranges import column_encoding
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.calibration import calibration_samples
from tests.model.dialects import strong_lora
from tests.model.test_xl_adapters import loaded
from tests.stable_diffusion_xl import save_xl

PROMPT, STEPS = "a painting of the cat", 4
TARGETS = {"unet": ("attn2.to_k", "add_embedding.linear_1"), "text_encoder": ("q_proj",), "text_encoder_2": ("fc1",)}
BAR_DB, TABLE_DB = 30.0, 40.0


def db(found: Any, expected: Any) -> float:
    return float(10 * np.log10(expected.var() / np.mean((found - expected) ** 2)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_with_an_adapter(tmp_path: Path) -> None:
    directory = save_xl(tmp_path)
    theirs: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(directory, local_files_only=True, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    of_models = {model: strong_lora(getattr(theirs, model), ends, (2,)) for model, ends in TARGETS.items()}
    tensors = {f"{model}.{key}": value for model, of_model in of_models.items() for key, value in of_model.items()}
    file = tmp_path / "ink" / "pytorch_lora_weights.safetensors"
    file.parent.mkdir()
    save_file(tensors, file)
    samples = calibration_samples(directory, ["ink"])
    made = build(BuildRequest(directory, {"ink": file}, tmp_path / "phone", samples=samples, precision="w8a16", reuse=True))
    pipe = QuadPipeline.from_pretrained(made.bundle)
    noise = np.random.default_rng(7).standard_normal((1, 4, 8, 8)).astype(np.float32)
    given = {"num_inference_steps": STEPS, "output_type": "latent"}
    plain = np.asarray(pipe(PROMPT, task="text-to-image", latents=noise, **given).images)
    pipe.set_adapters("ink")
    ours = np.asarray(pipe(PROMPT, task="text-to-image", latents=noise, **given).images)
    for model, of_model in of_models.items():
        setattr(theirs, model, loaded(getattr(theirs, model), of_model, None))
    for text_encoder in (theirs.text_encoder, theirs.text_encoder_2):
        _round_table(text_encoder)
    expected = np.asarray(theirs(PROMPT, latents=torch.from_numpy(noise), height=64, width=64, **given).images)
    assert db(ours, expected) >= BAR_DB
    assert db(plain, expected) < 20  # the adapter counts
    assert sum("leave half precision's range" in note for note in made.notes) == 1
    slots = pipe.bundle.slots
    assert {slot.component for slot in slots.slots} == {UNET, TEXT_ENCODER}
    _reuse_is_exact_with_adapters(pipe, noise)


def _round_table(text_encoder: Any) -> None:
    """Have the token table as the bundle has it, a byte an entry.

    What this loses is the table's alone (docs/adr/0066-token-tables-in-bytes.md); text encoders with blocks 20 times as loud as usual make
    much of it.
    """
    weight = text_encoder.get_input_embeddings().weight
    exact = weight.detach().numpy().copy()
    encoding = column_encoding(exact)
    rounded = encoding.dequantize(encoding.quantize(exact))
    assert db(rounded, exact) > TABLE_DB
    with torch.no_grad():
        weight.copy_(torch.from_numpy(rounded))


def _reuse_is_exact_with_adapters(pipe: QuadPipeline, noise: Any) -> None:
    """The build has compared the shallow U-Net, which hears the sizes too, with the whole one."""
    given = {"task": "text-to-image", "latents": noise, "num_inference_steps": 2 * STEPS, "guidance_scale": 5.0, "output_type": "latent"}

    def made(**words: Any) -> Any:
        return np.asarray(pipe(PROMPT, **given, **words).images)

    pipe.set_adapters("ink")
    whole, reused = made(), made(reuse=2)
    np.testing.assert_array_equal(made(reuse=1), whole)
    pipe.disable_lora()
    base = made(reuse=2)
    assert db(base, reused) < db(reused, whole)  # the adapter counts for more than what reuse loses
    pipe.set_adapters("ink")
    np.testing.assert_array_equal(made(reuse=2), reused)
