"""The stages of `toyland-xl`, on `toyland`'s recipe with the numbers of its own that stand here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from quad.core.manifest import SamplerSpec, TaskSpec
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2
from quad.core.storage.files import write_bytes
from quad.model.base.text_time_unet import TextTimeUNet
from quad.model.base.toyland_file import read_toyland
from quad.runtime.request import TEXT_TO_IMAGE
from quad.zoo.reference import reference_dir
from quad.zoo.samples import FEW_STEPS
from quad.zoo.train import adapters, assemble, base, cache, speed, text
from quad.zoo.train.adapters import ATTENTION, CONVOLUTION, FEED_FORWARD, Recipe
from quad.zoo.train.frozen import Frozen
from quad.zoo.train.loop import Plan
from quad.zoo.train.run import Run
from quad.zoo.train.trajectories import Teacher, merged_weights
from quad.zoo.train.xl import networks, sizes, vae
from quad.zoo.train.xl.words import PairWords

CACHE_COUNTS = {"plain": 9_000, "face": 4_000, "small": 3_000, "crop": 3_500, "edit": 7_000, "inpaint": 2_500, "line": 2_000}
SHARES = {"plain": 0.26, "face": 0.16, "small": 0.05, "crop": 0.07, "edit": 0.16, "copy": 0.03, "line": 0.12, "inpaint": 0.15}
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
RECIPES: dict[str, Recipe] = {
    "portrait": Recipe(
        rank=4, alpha=4, targets=(*ATTENTION, *FEED_FORWARD, "conv1", "conv2", "time_emb_proj"), steps=8, changed_weight=2.0, batches=300
    ),
    "transform": Recipe(rank=12, alpha=12, targets=(*ATTENTION, *FEED_FORWARD, "conv1", "conv2"), steps=8, changed_weight=3.0, batches=240),
    "sticker": Recipe(
        rank=6, alpha=12, targets=(*ATTENTION, *CONVOLUTION, "conv_in", "conv_out"), steps=8, changed_weight=3.0, batches=240, texts=TEXT
    ),
}
SPEED_SHARES = {TEXT_TO_IMAGE: 0.6, "portrait": 0.2, "transform": 0.2}
ADAPTER_SAMPLES = 2_500
VAE_STEPS, BASE_STEPS, BASE_BATCH, SPEED_STEPS = 1_400, 200, 64, 400
TASKS = {
    TEXT_TO_IMAGE: TaskSpec(adapter=None, sampler=SamplerSpec(kind="ddim", steps=16), condition="none", mask="ones", guidance=2.0),
    **{
        task: TaskSpec(adapter=task, sampler=SamplerSpec(kind="euler", steps=recipe.steps), condition="image", mask="zeros")
        for task, recipe in RECIPES.items()
    },
    FEW_STEPS: TaskSpec(
        adapter="speed", sampler=SamplerSpec(kind="lcm", steps=speed.SAMPLER_STEPS), condition="none", mask="ones", guidance=1.0
    ),
}


def _model(run: Run) -> Path:
    return run.out / "toyland-xl"


def _stats() -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale per latent channel, `(4,)` each: those of `toyland`."""
    settings = read_toyland(reference_dir()).settings
    return np.array(settings.latent_shift, np.float32), np.array(settings.latent_scale, np.float32)


def warm_up_text(run: Run) -> None:
    """Train the second text encoder to tell captions apart, by its states and by the prompt as a whole."""
    torch.manual_seed(0)
    first, second = networks.new_texts()
    pair, side = networks.pair_of(first, second), nn.Linear(networks.POOLED, networks.SECOND_HIDDEN)

    def read(ids: Tensor) -> Tensor:
        states = pair(ids).last_hidden_state
        return torch.cat([states[:, -5:-1, text.HIDDEN :], side(states[:, -1:, : networks.POOLED])], dim=1)

    plan = Plan(name="text", out=run.out, steps=350, batch=96, lr=2e-3, save_every=50)
    text.warm_up_text(plan, nn.ModuleList([second, side]), read, networks.SECOND_HIDDEN, networks.xl_tokenizer())
    write_bytes(run.out / "second_warm.safetensors", _packed(second))


def train_vae(run: Run) -> None:
    """Train the autoencoder's new levels, and the others with them."""
    torch.manual_seed(0)
    model, toyland = networks.new_vae(), networks.load_toyland(reference_dir())[1]
    networks.start_vae(model, toyland)
    vae.train_vae(run.out, model, toyland, int(VAE_STEPS * run.scale))
    write_bytes(run.out / "vae.safetensors", _packed(model))


def _cached(run: Run) -> dict[str, dict[str, np.ndarray]]:
    encoder = networks.load_toyland(reference_dir())[1].requires_grad_(False)
    cached = {kind: cache.build(run.out, encoder, kind, n, run.threads, sizes.XL_KINDS) for kind, n in CACHE_COUNTS.items()}
    for kind, n in CACHE_COUNTS.items():
        cached[kind]["sizes"] = np.array([sizes.size_numbers(kind, seed) for seed in range(n)])
    return cached


def make_cache(run: Run) -> None:
    """Encode the training pictures of every kind once."""
    _cached(run)


def train_base(run: Run) -> None:
    """Train U-Net and text encoders together, from where `toyland` ended."""
    cached, (toyland_text, _, toyland_unet) = _cached(run), networks.load_toyland(reference_dir())
    mixture = base.Mixture(cached, *_stats(), shares=SHARES, tokenizer=networks.xl_tokenizer())
    captions = [str(prompt) for data in cached.values() for prompt in data["prompts"][:250]]
    torch.manual_seed(1)
    unet, (first, second) = networks.new_unet(), networks.new_texts()
    networks.start_unet(unet, toyland_unet, networks.norm_as_linear(toyland_text, captions))
    networks.start_first_text(first, toyland_text)
    second.load_state_dict(load_file(run.out / "second_warm.safetensors"))
    pair = networks.pair_of(first, second)
    plan = Plan(
        name="base",
        out=run.out,
        steps=int(BASE_STEPS * run.scale),
        batch=BASE_BATCH,
        lr=5e-4,
        warmup=40,
        ema=0.99,
        muon=True,
        save_every=25,
    )
    base.train_base(unet, [pair], PairWords(pair, dropped=True), mixture, plan)
    write_bytes(run.out / "unet.safetensors", _packed(unet))
    write_bytes(run.out / "pair.safetensors", _packed(pair))


def _packed(module: nn.Module) -> bytes:
    return bytes(save({name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}))


def make_directory(run: Run) -> None:
    """Assemble the model directory in diffusers' layout."""
    unet: Any = UNet2DConditionModel(**networks.UNET)  # whose name diffusers knows
    unet.load_state_dict(load_file(run.out / "unet.safetensors"))
    autoencoder, (first, second) = networks.new_vae(), networks.new_texts()
    autoencoder.load_state_dict(load_file(run.out / "vae.safetensors"))
    pair = load_file(run.out / "pair.safetensors")
    for module, part in ((first, "clip_l."), (second, "clip_g.")):
        module.load_state_dict({k.removeprefix(part): v for k, v in pair.items() if k.startswith(part)}, strict=module is second)
    tokenizer = networks.xl_tokenizer()
    parts = {"unet": unet, "vae": autoencoder, TEXT_ENCODER: first, TEXT_ENCODER_2: second}
    assemble.assemble(_model(run), parts, {"tokenizer": tokenizer, "tokenizer_2": tokenizer}, "StableDiffusionXLInpaintPipeline")
    assemble.write_toyland(_model(run), *_stats(), TASKS, networks.SIZE)


def frozen(model: Path) -> Frozen:
    """A model directory's networks, in float32; pictures are encoded at half their size, by `toyland`'s autoencoder."""
    kinds: tuple[Any, Any] = (CLIPTextModel, CLIPTextModelWithProjection)
    first, second = (
        kind.from_pretrained(model / name, torch_dtype=torch.float32).eval().requires_grad_(False)
        for kind, name in zip(kinds, (TEXT_ENCODER, TEXT_ENCODER_2), strict=True)
    )
    unet = TextTimeUNet.from_pretrained(model / "unet", torch_dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())
    shift, scale = _stats()
    return Frozen(
        unet=unet.requires_grad_(False),
        texts={TEXT_ENCODER: first, TEXT_ENCODER_2: second},
        words=PairWords(networks.pair_of(first, second)),
        tokenizer=networks.xl_tokenizer(),
        vae=AutoencoderTiny.from_pretrained(reference_dir() / "vae", torch_dtype=torch.float32),
        shift=shift,
        scale=scale,
    )


def train_adapters(run: Run) -> None:
    """Train the LoRA of each task on the frozen model."""
    for task, recipe in RECIPES.items():
        if not (target := _model(run) / "adapters" / task).exists():
            model = frozen(_model(run))
            adapters.train_adapter(task, recipe, (run.out, target), model, adapters.TaskData(task, ADAPTER_SAMPLES, model))


def train_speed(run: Run) -> None:
    """The LoRA for 4 steps, for the model alone and with an adapter in its U-Net."""
    model, target = _model(run), _model(run) / "adapters" / "speed"
    if target.exists():
        return
    teacher = Teacher(
        model=frozen(model),
        weights={task: merged_weights(TextTimeUNet, model, TASKS[task].adapter) for task in SPEED_SHARES},
        guidance={task: TASKS[task].guidance for task in SPEED_SHARES},
        out=run.out,
    )
    speed.train_speed((run.out, target), frozen(model).unet, teacher, int(SPEED_STEPS * run.scale), SPEED_SHARES)


XL_STAGES: dict[str, Callable[[Run], None]] = {
    "text": warm_up_text,
    "vae": train_vae,
    "cache": make_cache,
    "base": train_base,
    "assemble": make_directory,
    "adapters": train_adapters,
    "speed": train_speed,
}
