"""Model directories whose configs are broken, absurd, or of another family."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quad.core.errors import InputError, QuadError, UnsupportedError
from tests.hostile.raw import Written, changed, put
from tests.hostile.refusal import Case

UNET, VAE, TEXT, SCHEDULER = "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"
INDEX, WORLD, TOKENIZER = "model_index.json", "toyland.json", "tokenizer/tokenizer.json"
_CONFIGS = (UNET, VAE, TEXT, SCHEDULER)


def edit(name: str, **changes: Any) -> Written:
    """Changes fields of a config; a file that is not there begins empty."""

    def change(root: Path) -> None:
        file = root / name
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**before, **changes}))

    return changed(change)


def without(name: str) -> Written:
    return changed(lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink())


def pipe(name: str) -> Written:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return changed(change)


def linked(name: str, target: Callable[[Path], str | Path]) -> Written:
    """Puts a link in place of a file or folder; what was there moves out of the model and lies beside it."""

    def change(root: Path) -> None:
        if (root / name).exists():
            (root / name).rename(root.parent / "outside")
        (root / name).symlink_to(target(root))

    return changed(change)


def _device(_root: Path) -> str:
    return "/dev/zero"


_DEEP = b'{"a":' * 60_000 + b"1" + b"}" * 60_000
MISSING = [
    *(Case(f"no {name}", without(name), InputError, "expected a file of a diffusers model") for name in _CONFIGS),
    *(Case(f"no {name}", without(name), InputError, "expected") for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")),
    Case(
        "a file in place of a folder",
        changed(lambda root: (shutil.rmtree(root / "vae"), (root / "vae").write_bytes(b"vae"))),
        InputError,
        "vae",
    ),
    Case("nothing at all", changed(lambda root: (shutil.rmtree(root), root.mkdir())), InputError, "expected"),
]
TEXTS = [
    *(Case(f"{name} of no JSON", put(name, b"a: 1"), InputError, "expected JSON") for name in _CONFIGS),
    *(Case(f"{name} of a list", put(name, b"[1]"), InputError, "expected a JSON object, found list") for name in (*_CONFIGS, INDEX, WORLD)),
    *(Case(f"{name} of deep objects", put(name, _DEEP), InputError, "expected JSON") for name in (UNET, SCHEDULER, WORLD, INDEX)),
    *(Case(f"{name} of bytes", put(name, b"\xff\xfe\xff"), InputError, "expected JSON") for name in (VAE, TEXT)),
    Case("a config of a number of 5,000 digits", put(UNET, b'{"a": 1' + b"0" * 5000 + b"}"), InputError, "expected JSON"),
    Case("a config of 70 MB", put(UNET, b"{" + b" " * (70 * 2**20) + b"}"), InputError, "unet/config.json: expected"),
    *(Case(f"{name} as a pipe", pipe(name), InputError, "expected") for name in (UNET, SCHEDULER, TOKENIZER)),
    Case("a config that is a device without end", linked(UNET, _device), InputError, "expected"),
]

_ABSURD: Mapping[str, tuple[str, dict[str, Any]]] = {
    "channels below zero": (UNET, {"block_out_channels": [-16, 32]}),
    "a billion channels": (UNET, {"block_out_channels": [1_000_000_000, 1_000_000_000]}),
    "channels of strings": (UNET, {"block_out_channels": ["16", "32"]}),
    "channels of null": (UNET, {"block_out_channels": None}),
    "no channels": (UNET, {"block_out_channels": []}),
    "channels for other blocks": (UNET, {"block_out_channels": [16, 32, 32]}),
    "10,000 blocks": (
        UNET,
        {"block_out_channels": [16] * 10_000, "down_block_types": ["DownBlock2D"] * 10_000, "up_block_types": ["UpBlock2D"] * 10_000},
    ),
    "a billion layers": (UNET, {"layers_per_block": 1_000_000_000}),
    "layers below zero": (UNET, {"layers_per_block": -1}),
    "a billion transformers": (UNET, {"transformer_layers_per_block": 1_000_000_000}),
    "a million groups": (UNET, {"norm_num_groups": 1_000_000}),
    "no groups": (UNET, {"norm_num_groups": 0}),
    "heads of nothing": (UNET, {"attention_head_dim": 0}),
    "text features of infinity": (UNET, {"cross_attention_dim": float("inf")}),
    "input channels of infinity": (UNET, {"in_channels": float("inf")}),
    "input channels of a list": (UNET, {"in_channels": [9]}),
    "input channels below zero": (UNET, {"in_channels": -4}),
    "a trillion output channels": (UNET, {"out_channels": 10**12}),
    "a number past 64 bits": (UNET, {"in_channels": 10**30}),
    "an activation that is none": (UNET, {"act_fn": "__import__('os')"}),
    "text features of another width": (UNET, {"cross_attention_dim": 24}),
    "a vocabulary of a trillion": (TEXT, {"vocab_size": 10**12}),
    "a billion text layers": (TEXT, {"num_hidden_layers": 1_000_000_000}),
    "text layers of a string": (TEXT, {"num_hidden_layers": "2"}),
    "heads that do not divide": (TEXT, {"num_attention_heads": 5}),
    "no tokens": (TEXT, {"max_position_embeddings": 0}),
    "a trillion tokens": (TEXT, {"max_position_embeddings": 10**12}),
    "an autoencoder of a billion channels": (VAE, {"encoder_block_out_channels": [10**9] * 3}),
    "an autoencoder of a billion blocks": (VAE, {"num_encoder_blocks": [0, 1, 10**9]}),
    "an autoencoder of no latent": (VAE, {"latent_channels": 0}),
    "an autoencoder scaled by NaN": (VAE, {"scaling_factor": float("nan")}),
    "an autoencoder scaled by a string": (VAE, {"scaling_factor": "big"}),
    "an autoencoder scaled by nothing": (VAE, {"scaling_factor": 0}),
    "a class of null": (UNET, {"_class_name": None}),
    "a class of a list": (VAE, {"_class_name": ["AutoencoderKL"]}),
    "architectures of a number": (TEXT, {"architectures": 7}),
    "no architectures": (TEXT, {"architectures": []}),
    "a world of 3 pixels": (WORLD, {"size": 3}),
    "a world below zero": (WORLD, {"size": -64}),
    "a world of a billion pixels": (WORLD, {"size": 64 * 10**9}),
    "a world scaled by nothing": (WORLD, {"latent_scale": [0, 1, 1, 1]}),
    "a world with tasks of a list": (WORLD, {"tasks": ["removal"]}),
    "a world with tasks of numbers": (WORLD, {"tasks": {"removal": 3}}),
    "a world of a billion steps": (
        WORLD,
        {"tasks": {"text-to-image": {"adapter": None, "sampler": {"kind": "ddim", "steps": 10**9}, "condition": "none", "mask": "ones"}}},
    ),
    "pictures of a billion pixels": (UNET, {"sample_size": 10**9}),
    "pictures of nothing": (UNET, {"sample_size": 0}),
    "pictures of three sides": (UNET, {"sample_size": [8, 16, 16]}),
    "pictures of two sides, one a billion": (UNET, {"sample_size": [8, 10**9]}),
}
ABSURD = [Case(name, edit(file, **changes), QuadError, "expected") for name, (file, changes) in _ABSURD.items()]

_OTHERS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    **{
        f"{family} by its index": (INDEX, {"_class_name": kind}, f"({family})")
        for family, kind in {
            "SDXL": "StableDiffusionXLAdapterPipeline",
            "Stable Diffusion 3": "StableDiffusion3Pipeline",
            "Flux": "FluxPipeline",
            "Sana": "SanaPipeline",
            "Kandinsky": "KandinskyPipeline",
        }.items()
    },
    "an index of no pipeline": (INDEX, {"_class_name": 7}, "found 7"),
    "an index that breaks the line": (INDEX, {"_class_name": "Pipe\nline\x1b[2J"}, "found Pipe"),
    "the refiner by its conditions": (
        UNET,
        {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2560},
        "the refiner",
    ),
    "a U-Net of classes": (UNET, {"class_embed_type": "timestep"}, "a U-Net conditioned on text alone"),
    "a distilled guidance": (UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
    "blocks of video": (UNET, {"down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D"]}, "found DownBlock3D"),
    "a U-Net that is a class of ours": (UNET, {"_class_name": "os.system"}, "found os.system"),
    "an autoencoder of video": (VAE, {"_class_name": "AutoencoderKLWan"}, "found AutoencoderKLWan"),
    "T5 for text": (TEXT, {"architectures": ["T5EncoderModel"]}, "found T5EncoderModel"),
}
OTHERS = [Case(name, edit(file, **changes), UnsupportedError, says) for name, (file, changes, says) in _OTHERS.items()]
