"""The files that peers read: a pipeline of Stable Diffusion 1.5's shape with random weights, LoRAs in two spellings, and an OpenVINO model.

    python -m benchmarks.rig.peers.files FOLDER NAME [NAME ...]

Each is written once; the names are those of `WRITERS`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.rig.graphs import random_adapter
from benchmarks.rig.switching_world import meta_unet
from benchmarks.rig.world import write_pipeline
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

ADAPTERS, RANK = 3, 16


def _pipeline(folder: Path) -> None:
    write_pipeline(folder / "pipeline")


def _loras(folder: Path, name_of: Callable[[str, str], str], *, alpha: bool) -> None:
    """Three LoRA files at all attention projections."""
    folder.mkdir()
    unet = meta_unet()
    for number in range(ADAPTERS):
        tensors: dict[str, torch.Tensor] = {}
        for path, pair in random_adapter(unet, RANK).weights.items():
            scale = 1.0 + 0.1 * number  # so that they differ
            down, up = (torch.from_numpy(scale * matrix).contiguous() for matrix in (pair.a, pair.b))
            tensors |= {name_of(path, "down"): down, name_of(path, "up"): up}
            if alpha:
                tensors[name_of(path, "alpha")] = torch.tensor(float(RANK))
        save_file(tensors, folder / f"l{number}.safetensors")


def _peft(folder: Path) -> None:
    kinds = {"down": "lora_A.weight", "up": "lora_B.weight"}
    _loras(folder / "peft", lambda path, kind: f"unet.{path}.{kinds[kind]}", alpha=False)


def _kohya(folder: Path) -> None:
    kinds = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    _loras(folder / "kohya", lambda path, kind: f"lora_unet_{path.replace('.', '_')}.{kinds[kind]}", alpha=True)


def _openvino(folder: Path) -> None:
    """The traced U-Net with dynamic sizes, weights in half precision as its exporter writes them."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # which would report over the network
    import openvino

    unet = UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet", torch_dtype=torch.float32).eval()
    example = {"sample": torch.randn(1, 4, 32, 32), "timestep": torch.tensor([5]), "encoder_hidden_states": torch.randn(1, 77, 768)}
    inputs = [("sample", [-1, 4, -1, -1]), ("timestep", [-1]), ("encoder_hidden_states", [-1, 77, 768])]
    with torch.no_grad():
        model = openvino.convert_model(unet, example_input=example, input=inputs)
    model.outputs[0].get_tensor().set_names({"out_sample"})
    place = folder / "openvino" / "unet"
    openvino.save_model(model, place / "openvino_model.xml", compress_to_fp16=True)
    shutil.copy(folder / "pipeline" / "unet" / "config.json", place)
    (folder / "openvino" / "vae_decoder").mkdir(exist_ok=True)
    shutil.copy(folder / "pipeline" / "vae" / "config.json", folder / "openvino" / "vae_decoder")  # its factor is read with the U-Net


def _taesd(folder: Path) -> None:
    torch.manual_seed(0)
    AutoencoderTiny().half().save_pretrained(folder / "taesd")


def _sdcpp(folder: Path) -> None:
    """The pipeline with the names in its text encoder that stable-diffusion.cpp knows."""
    for part in ("unet", "vae"):
        shutil.copytree(folder / "pipeline" / part, folder / "sdcpp" / part)
    place = folder / "sdcpp" / "text_encoder"
    place.mkdir()
    tensors = load_file(folder / "pipeline" / "text_encoder" / "model.safetensors")
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    save_file(named, place / "model.safetensors")
    shutil.copy(folder / "pipeline" / "model_index.json", folder / "sdcpp")


WRITERS = {"pipeline": _pipeline, "peft": _peft, "kohya": _kohya, "openvino": _openvino, "taesd": _taesd, "sdcpp": _sdcpp}


def write_files(folder: Path, names: list[str]) -> None:
    """Those that are not there yet, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / f"{name}.done").is_file():
            print(f"peers: write {name}", file=sys.stderr, flush=True)
            shutil.rmtree(folder / name, ignore_errors=True)
            WRITERS[name](folder)
            (folder / f"{name}.done").touch()


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), sys.argv[2:])
