"""Open a diffusers model directory as a frozen base in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import transformers
from tokenizers import Tokenizer
from torch import nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.manifest import LatentSpec, NoiseSchedule, SamplerSpec, TaskSpec, TextSpec
from quad.model.parts import TextModule, VaeDecoderModule, VaeEncoderModule
from quad.model.sites import share_copy
from quad.model.weights import find_weights, read_config, weights_digest

WORLD_FILE = "toyland.json"
_UNETS = {"UNet2DConditionModel": diffusers.UNet2DConditionModel}
_VAES = {"AutoencoderTiny": diffusers.AutoencoderTiny, "AutoencoderKL": diffusers.AutoencoderKL}
_TEXTS = {"CLIPTextModel": transformers.CLIPTextModel}
# What diffusers' schedulers assume where a config is silent. Source: diffusers DDIMScheduler.
_SCHEDULE_DEFAULTS = {"steps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
                      "rescale_zero_snr": False, "prediction": "epsilon"}  # fmt: skip
_SCHEDULE_NAMES = {"steps": "num_train_timesteps", "rescale_zero_snr": "rescale_betas_zero_snr", "prediction": "prediction_type"}


@dataclass(frozen=True)
class Base:
    """A diffusion model as quad sees it: modules in float32, eval, without gradients, and how they go together.

    Args:
        latent: latent space of the graph, `z_model = (z_vae - shift) * scale`.
        size: pixels along one side of the pictures it was trained on.
        tasks: what it can do, by name.
        digest: identity of its weight files.
    """

    directory: Path
    unet: nn.Module
    text_encoder: nn.Module
    vae: nn.Module
    tokenizer_file: Path
    schedule: NoiseSchedule
    latent: LatentSpec
    text: TextSpec
    size: int
    tasks: dict[str, TaskSpec]
    digest: str


class _World(msgspec.Struct, frozen=True):
    """`toyland.json`: what diffusers' layout has no place for."""

    latent_scale: tuple[float, ...] | None = None
    latent_shift: tuple[float, ...] | None = None
    size: int | None = None
    tasks: dict[str, TaskSpec] = {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and reports of the two libraries stay off; quad says itself what is wrong."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _check_loaded(file: Path, info: dict[str, Any]) -> None:
    """Raise InputError unless the weights were all there and all used."""
    # Old text encoders also stored this constant.
    extra = [key for key in info["unexpected_keys"] if not key.endswith("position_ids")]
    for word, keys in (("no", info["missing_keys"]), ("also", extra)):
        if keys:
            found = f"{word} {', '.join(sorted(keys)[:4])}"
            raise InputError(mismatch(f"{file}", "exactly the weights of config.json", found, "fetch or save the model again"))


def _load(folder: Path, classes: dict[str, Any], stem: str) -> tuple[nn.Module, list[Path]]:
    """One component, and its weight files.

    Raises:
        InputError: weights missing, pickled, truncated, or not those of the config.
        UnsupportedError: a class quad does not know.
    """
    config = read_config(folder / "config.json")
    kind = config.get("_class_name") or (config.get("architectures") or ["no class at all"])[0]
    if kind not in classes:
        raise UnsupportedError(mismatch(f"{folder}", " or ".join(classes), kind, "choose a Stable-Diffusion-like model"))
    variant, files = find_weights(folder, stem)
    try:
        with _quiet():
            model, info = classes[kind].from_pretrained(
                folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        # The libraries explain at length; what was wrong comes first.
        found = f"{error}".strip().splitlines()[0][:200]
        raise InputError(mismatch(f"{folder}", "weights that fit config.json", found, "fetch or save the model again")) from error
    _check_loaded(files[0], info)
    module: nn.Module = model.float().eval().requires_grad_(False)
    return module, files


def _check_unet(directory: Path, config: dict[str, Any]) -> None:
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(name):
            raise UnsupportedError(
                mismatch(
                    f"{directory / 'unet'}", "a U-Net conditioned on text alone", f"{name}={config[name]!r}", "choose an SD1.5-like model"
                )
            )


def _read_schedule(path: Path) -> NoiseSchedule:
    config = read_config(path)
    values = {name: config.get(_SCHEDULE_NAMES.get(name, name), default) for name, default in _SCHEDULE_DEFAULTS.items()}
    if config.get("trained_betas") is not None:
        raise UnsupportedError(mismatch(f"{path}", "a named beta_schedule", "trained_betas", "choose a model with a named schedule"))
    try:
        return msgspec.convert(values, NoiseSchedule)
    except msgspec.ValidationError as error:
        raise UnsupportedError(mismatch(f"{path}", "a schedule quad knows", f"{error}", "choose another scheduler")) from error


def _read_world(path: Path) -> _World:
    if not path.is_file():
        return _World()
    try:
        return msgspec.convert(read_config(path), _World)
    except msgspec.ValidationError as error:
        raise InputError(mismatch(f"{path}", "latent_scale, latent_shift, size, tasks", f"{error}", "mend the file")) from error


def _latent(path: Path, world: _World, config: Any) -> LatentSpec:
    channels = int(config.latent_channels)
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    scale = world.latent_scale or (float(config.scaling_factor),) * channels
    shift = world.latent_shift or (float(config.get("shift_factor") or 0.0),) * channels
    if len(scale) != channels or len(shift) != channels or 0.0 in scale:
        raise InputError(
            mismatch(f"{path}", f"{channels} latent scales (not 0) and shifts", f"{len(scale)} and {len(shift)}", "mend the file")
        )
    return LatentSpec(channels, 2 ** (len(blocks) - 1), scale, shift)


def _pad_id(tokenizer: Tokenizer, folder: Path, default: int) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    file = folder / "tokenizer_config.json"
    token = read_config(file).get("pad_token") if file.is_file() else None
    found = tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
    return default if found is None else int(found)


def _read_text(file: Path, config: Any) -> TextSpec:
    if not file.is_file():
        then = f"write it with AutoTokenizer.from_pretrained({str(file.parent)!r}).save_pretrained({str(file.parent)!r})"
        raise InputError(mismatch(f"{file.parent}", "tokenizer.json", "none", then))
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot parse
        raise InputError(mismatch(f"{file}", "a tokenizer", f"{error}", "fetch or save the model again")) from error
    pad = _pad_id(tokenizer, file.parent, int(config.pad_token_id or 0))
    if tokenizer.get_vocab_size() > config.vocab_size:
        found = f"{tokenizer.get_vocab_size()} tokens"
        raise InputError(
            mismatch(f"{file}", f"at most {config.vocab_size} tokens (text_encoder/config.json)", found, "use the model's own tokenizer")
        )
    return TextSpec(int(config.max_position_embeddings), pad, int(config.hidden_size))


def open_model(directory: Path) -> Base:
    """Open a model in diffusers' layout: unet, vae, text_encoder, tokenizer, scheduler, and `toyland.json` where it has one.

    Raises:
        InputError: no model there, weights missing, pickled, truncated or of another config, no tokenizer.json.
        UnsupportedError: a class, a schedule or a conditioning that quad does not know.
    """
    if not directory.is_dir():
        raise InputError(mismatch(f"{directory}", "a diffusers model directory", "none", "check the path"))
    unet, unet_files = _load(directory / "unet", _UNETS, "diffusion_pytorch_model")
    vae, vae_files = _load(directory / "vae", _VAES, "diffusion_pytorch_model")
    text, text_files = _load(directory / "text_encoder", _TEXTS, "model")
    unet_config: Any = unet.config
    _check_unet(directory, unet_config)
    world = _read_world(directory / WORLD_FILE)
    latent = _latent(directory / WORLD_FILE, world, vae.config)
    tokenizer_file = directory / "tokenizer" / "tokenizer.json"
    plain = {"text-to-image": TaskSpec(None, SamplerSpec("ddim", 25), "none", "ones", 7.5)}
    return Base(
        directory=directory,
        unet=unet,
        text_encoder=text,
        vae=vae,
        tokenizer_file=tokenizer_file,
        schedule=_read_schedule(directory / "scheduler" / "scheduler_config.json"),
        latent=latent,
        text=_read_text(tokenizer_file, text.config),
        size=world.size or int(unet_config.sample_size) * latent.factor,
        tasks=world.tasks or plain,
        digest=weights_digest(directory, unet_files + vae_files + text_files),
    )


def text_module(base: Base) -> nn.Module:
    """The text encoder's graph; shares the base's weights, not its structure."""
    return TextModule(share_copy(base.text_encoder)).eval()


def vae_encoder_module(base: Base) -> nn.Module:
    """The VAE encoder's graph; shares the base's weights, not its structure."""
    return VaeEncoderModule(share_copy(base.vae), base.latent).eval()


def vae_decoder_module(base: Base) -> nn.Module:
    """The VAE decoder's graph; shares the base's weights, not its structure."""
    return VaeDecoderModule(share_copy(base.vae), base.latent).eval()
