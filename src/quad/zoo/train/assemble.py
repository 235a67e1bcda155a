"""Put trained weights into a diffusers directory: fp16 safetensors, configs, tokenizer, and `toyland.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.storage.files import write_bytes
from quad.zoo.train.adapters import RECIPES
from quad.zoo.train.base import new_scheduler

CHECKER = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
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


def write_toyland(out: Path, shift: np.ndarray, scale: np.ndarray, tasks: dict[str, TaskSpec], size: int = 64) -> None:
    """Write `toyland.json`: the latent's normalisation, the pictures' size and the tasks."""
    write_json(
        out / "toyland.json",
        {
            "latent_scale": [float(x) for x in scale],
            "latent_shift": [float(x) for x in shift],
            "size": size,
            "tasks": msgspec.to_builtins(tasks),
        },
    )


def assemble(out: Path, parts: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer], pipeline: str) -> None:
    """Write the model directory; `toyland.json` is written apart.

    Args:
        parts: networks by their folders.
        tokenizers: by their folders.
        pipeline: diffusers' class.
    """
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    for name, module in parts.items():
        module.half().save_pretrained(out / name)
        library = "transformers" if name.startswith("text_encoder") else "diffusers"
        index[name] = [library, type(module).__name__]
    for name, tokenizer in tokenizers.items():
        write_bytes(out / name / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        write_json(out / name / "tokenizer_config.json", TOKENIZER_CONFIG)
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
    new_scheduler().save_pretrained(out / "scheduler")
    own = {"force_zeros_for_empty_prompt": True} if len(tokenizers) > 1 else CHECKER
    write_json(out / "model_index.json", index | {"scheduler": ["diffusers", "DDIMScheduler"]} | own)
