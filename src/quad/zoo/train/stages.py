"""The stages of the recipe, each a function from a `Run` to files in its directory."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save
from transformers import CLIPTextModel

from quad.build.olss_tables import solve_tasks
from quad.core.slots import TEXT_ENCODER
from quad.core.storage.files import new_file, write_bytes
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.base.toyland_file import read_toyland
from quad.model.slots.network import slot_network
from quad.quantize.observe.calibrate import component_networks
from quad.zoo.calibration import calibration_samples
from quad.zoo.reference import ADAPTER_FILE, reference_dir
from quad.zoo.train import adapters, assemble, base, cache, kinds, speed, text, vae
from quad.zoo.train.frozen import Frozen
from quad.zoo.train.loop import Plan
from quad.zoo.train.run import Run
from quad.zoo.train.trajectories import Teacher, merged_weights

CACHE_COUNTS = {"plain": 26_000, "face": 8_000, "edit": 12_000, "line": 10_000, "inpaint": 14_000}
VAE_SAMPLES = 88_000
VAE_PICTURES = 30_000
BASE_STEPS = 1_900
BASE_BATCH = 64
ADAPTER_SAMPLES = 4_000
KIND_SAMPLES = 400
SPEED_STEPS = 1_200


def _model(run: Run) -> Path:
    return run.out / "toyland"


def _cached_pictures(run: Run) -> tuple[np.ndarray, np.ndarray]:
    file = run.out / "vae_pictures.npy"
    if not file.exists():
        with get_context("fork").Pool(run.threads) as pool:
            drawn = np.stack(pool.map(vae.picture, range(VAE_PICTURES), chunksize=200))
        with new_file(file) as stream:
            np.save(stream, drawn)
    return np.load(file), np.stack([vae.picture(10**9 + i) for i in range(256)])


def train_vae(run: Run) -> None:
    """Train the autoencoder on rendered pictures."""
    pictures, held_out = _cached_pictures(run)
    model = vae.train_vae(run.out, int(VAE_SAMPLES * run.scale), pictures, held_out)
    write_bytes(run.out / "vae.safetensors", save(model.state_dict()))


def load_vae(run: Run) -> AutoencoderTiny:
    """The autoencoder that `train_vae` left."""
    model = vae.new_vae()
    model.load_state_dict(load_file(run.out / "vae.safetensors"))
    return model.eval().requires_grad_(False)


def make_cache(run: Run) -> None:
    """Encode the training pictures of every kind once."""
    model = load_vae(run)
    latents = [cache.build(run.out, model, kind, n)["latents"][:4000, 0] for kind, n in CACHE_COUNTS.items()]
    z = np.concatenate(latents).astype(np.float32)
    with new_file(run.out / "latent_stats.npz") as stream:
        np.savez(stream, shift=z.mean((0, 2, 3)), scale=1 / z.std((0, 2, 3)))


def latent_stats(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale per latent channel, `(4,)` each."""
    with np.load(run.out / "latent_stats.npz", allow_pickle=False) as stats:
        return stats["shift"], stats["scale"]


def warm_up_text(run: Run) -> None:
    """Train the text encoder to tell captions apart before it meets the U-Net."""
    torch.manual_seed(0)
    model = text.new_text_encoder()
    plan = Plan(name="text", out=run.out, steps=700, batch=128, lr=2e-3, save_every=100)
    text.warm_up_text(plan, model, lambda ids: model(ids).last_hidden_state[:, -4:], text.HIDDEN, text.new_tokenizer())
    write_bytes(run.out / "text_warm.safetensors", save(model.state_dict()))


def train_base(run: Run) -> None:
    """Train U-Net and text encoder together."""
    model = load_vae(run)
    cached = {kind: cache.build(run.out, model, kind, n) for kind, n in CACHE_COUNTS.items()}
    torch.manual_seed(1)
    encoder = text.new_text_encoder()
    encoder.load_state_dict(load_file(run.out / "text_warm.safetensors"))
    unet = base.new_unet()
    steps = int(BASE_STEPS * run.scale)
    plan = Plan(name="base", out=run.out, steps=steps, batch=BASE_BATCH, lr=1e-3, warmup=150, ema=0.998, muon=True, save_every=100)
    base.train_base(unet, [encoder], base.last_states(encoder), base.Mixture(cached, *latent_stats(run)), plan)
    write_bytes(run.out / "unet.safetensors", save({k: v.contiguous() for k, v in unet.state_dict().items()}))
    write_bytes(run.out / "text.safetensors", save(encoder.state_dict()))


def make_directory(run: Run) -> None:
    """Assemble the model directory in diffusers' layout."""
    unet, encoder = base.new_unet(), text.new_text_encoder()
    unet.load_state_dict(load_file(run.out / "unet.safetensors"))
    encoder.load_state_dict(load_file(run.out / "text.safetensors"))
    parts = {"unet": unet, "vae": load_vae(run), TEXT_ENCODER: encoder}
    assemble.assemble(_model(run), parts, {"tokenizer": text.new_tokenizer()}, "StableDiffusionInpaintPipeline")
    assemble.write_toyland(_model(run), *latent_stats(run), assemble.default_tasks())


def frozen(model: Path) -> Frozen:
    """A model directory's networks, in float32."""
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype=torch.float32).eval().requires_grad_(False)
    autoencoder = AutoencoderTiny.from_pretrained(model / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())
    settings = read_toyland(model).settings
    return Frozen(
        unet=unet.requires_grad_(False),
        texts={TEXT_ENCODER: encoder},
        words=base.last_states(encoder),
        tokenizer=text.new_tokenizer(),
        vae=autoencoder,
        shift=np.array(settings.latent_shift, np.float32),
        scale=np.array(settings.latent_scale, np.float32),
    )


def _train_adapter(run: Run, model: Path, task: str, target: Path) -> None:
    """One LoRA on the base in `model`, unless `target` is there already."""
    if target.exists():
        return
    recipe, network = (adapters.RECIPES | adapters.LATER_RECIPES)[task], frozen(model)
    adapters.train_adapter(task, recipe, (run.out, target), network, adapters.TaskData(task, ADAPTER_SAMPLES, network))


def train_adapters(run: Run, tasks: tuple[str, ...] = tuple(adapters.RECIPES)) -> None:
    """Train the LoRA of each task on the frozen model."""
    for task in tasks:
        _train_adapter(run, _model(run), task, _model(run) / "adapters" / task)


def train_later(run: Run) -> None:
    """The LoRAs of after the freeze, on the model of this run, or on the shipped one where this run has none; they lie beside it."""
    model = _model(run) if _model(run).exists() else reference_dir()
    for task in adapters.LATER_RECIPES:
        _train_adapter(run, model, task, run.out / "later" / task)


def train_kinds(run: Run, names: tuple[str, ...] = tuple(kinds.KIND_RECIPES)) -> None:
    """Later adapters of further kinds, on the model of this run, or on the shipped one where this run has none; they lie beside it."""
    model = _model(run) if _model(run).exists() else reference_dir()
    for name in names:
        if (target := run.out / "kinds" / name).exists():
            continue
        network = frozen(model)
        kinds.train_kind(name, (run.out, target), network, adapters.TaskData(kinds.KIND_RECIPES[name].task, KIND_SAMPLES, network))


def train_speed(run: Run) -> None:
    """The LoRA for 4 steps, on the model of this run, or on the shipped one where this run has none; it lies beside it."""
    target = run.out / "later" / "speed"
    if target.exists():
        return
    model = _model(run) if _model(run).exists() else reference_dir()
    tasks = read_toyland(model).settings.tasks
    teacher = Teacher(
        model=frozen(model),
        weights={task: merged_weights(UNet2DConditionModel, model, spec.adapter) for task, spec in tasks.items()},
        guidance={task: spec.guidance for task, spec in tasks.items()},
        out=run.out,
    )
    speed.train_speed((run.out, target), frozen(model).unet, teacher, int(SPEED_STEPS * run.scale))


def solve_samplers(run: Run) -> None:
    """Solve the OLSS tables that the tasks ask for and write them into `toyland.json`."""
    model = open_model(_model(run))
    loras = [read_adapter(task, _model(run) / "adapters" / task / ADAPTER_FILE, model.unet) for task in adapters.RECIPES]
    network, table = slot_network(model.unet, loras)
    samples = calibration_samples(_model(run), [lora.name for lora in loras])
    solved = solve_tasks(model, component_networks(model, network), table, loras, samples)
    assemble.write_toyland(_model(run), *latent_stats(run), solved.tasks)


STAGES: dict[str, Callable[[Run], None]] = {
    "vae": train_vae,
    "cache": make_cache,
    "text": warm_up_text,
    "base": train_base,
    "assemble": make_directory,
    "adapters": train_adapters,
    "samplers": solve_samplers,
    "later": train_later,
    "speed": train_speed,
    "kinds": train_kinds,
}
