"""Put trained weights into a diffusers directory: fp16 safetensors, configs, tokenizer, and `toyland.json`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.storage.files import write_bytes
from quad.zoo.train.adapters import RECIPES
from quad.zoo.train.base import new_scheduler
from quad.zoo.train.text import new_tokenizer

MODEL_INDEX = {
    "_class_name": "StableDiffusionInpaintPipeline",
    "_diffusers_version": "0.42.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 32,
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}


def default_tasks() -> dict[str, TaskSpec]:
    """The six tasks with their samplers; an OLSS table is solved when the bundle is built."""
    samplers = {
        "transform": SamplerSpec(kind="ddim", steps=RECIPES["transform"].steps),
        "sticker": SamplerSpec(kind="olss", steps=RECIPES["sticker"].steps),
        "portrait": SamplerSpec(kind="euler", steps=RECIPES["portrait"].steps),
    }
    edits = {task: TaskSpec(adapter=task, sampler=sampler, condition="image", mask="zeros") for task, sampler in samplers.items()}
    return {
        "text-to-image": TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=16), condition="none", mask="ones", guidance=2.0),
        **edits,
        "sketch": TaskSpec(
            adapter="sketch", sampler=SamplerSpec(kind="euler", steps=RECIPES["sketch"].steps), condition="image", mask="ones"
        ),
        "removal": TaskSpec(
            adapter="removal", sampler=SamplerSpec(kind="ddim", steps=RECIPES["removal"].steps), condition="masked-image", mask="input"
        ),
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON file with two spaces of indent."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_toyland(out: Path, shift: np.ndarray, scale: np.ndarray, tasks: dict[str, TaskSpec]) -> None:
    """Write `toyland.json`: the latent's normalisation, the pictures' size and the tasks."""
    write_json(
        out / "toyland.json",
        {
            "latent_scale": [float(x) for x in scale],
            "latent_shift": [float(x) for x in shift],
            "size": 64,
            "tasks": msgspec.to_builtins(tasks),
        },
    )


def assemble(out: Path, unet: UNet2DConditionModel, vae: AutoencoderTiny, text: CLIPTextModel) -> None:
    """Write the model directory; `toyland.json` is written apart."""
    unet.half().save_pretrained(out / "unet")
    vae.half().save_pretrained(out / "vae")
    text.half().save_pretrained(out / "text_encoder")
    new_scheduler().save_pretrained(out / "scheduler")
    write_bytes(out / "tokenizer" / "tokenizer.json", new_tokenizer().to_str(pretty=True).encode())
    write_json(out / "tokenizer" / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(out / "model_index.json", MODEL_INDEX)
