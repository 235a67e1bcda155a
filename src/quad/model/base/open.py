"""Open a model, a diffusers directory or a one-file checkpoint, as a frozen base in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from quad.core.errors import InputError, UnsupportedError, UsageError, mismatch
from quad.core.families import Family
from quad.core.manifest import LatentPreview, LatentSpec, NoiseSchedule, SamplerSpec, TaskSpec, TextSpec
from quad.core.picture_size import LARGEST_SIZE, PictureSize, parse_sizes, square
from quad.core.sampling import AdapterDefaults, SamplerSettings
from quad.core.slots import TEXT_ENCODER, UNET
from quad.core.storage.stable_file import StableFile
from quad.model.base.checkpoint.autoencoder import VAE
from quad.model.base.checkpoint.parts import checkpoint_parts
from quad.model.base.checkpoint.prediction import prediction_word
from quad.model.base.default_tasks import plain_tasks
from quad.model.base.family import denoiser_folder, denoiser_inputs, trained_grid
from quad.model.base.load_component import StoredComponent
from quad.model.base.modules import TextModule, VaeDecoderModule, VaeEncoderModule, share_copy
from quad.model.base.noise_schedule import read_scheduler
from quad.model.base.parts import ModelParts, directory_parts
from quad.model.base.stated_samplers import stated_samplers
from quad.model.base.stored_weights import tensors_digest
from quad.model.base.text.vector_table import with_vector_table
from quad.model.base.toyland_file import WORLD_FILE, Toyland, latent_spec, read_toyland
from quad.model.base.weight_files import files_digest
from quad.runtime.adapter_defaults import reachable_strength, with_defaults
from quad.runtime.samplers.names import parse_sampler

__all__ = ["WORLD_FILE", "Base", "BaseOptions", "open_model", "text_module", "vae_decoder_module", "vae_encoder_module"]

# Sides of pictures that every denoiser of the family halves as often as it wants to.
SIZE_STEP = 64


@dataclass(frozen=True, kw_only=True)
class Base:
    """A diffusion model as quad sees it: modules in float32, eval, without gradients, and how they go together.

    Args:
        unet: the denoiser, a U-Net or a transformer that is called as one.
        tokenizer: the text of a `tokenizer.json`.
        latent: latent space of the graph, `z_model = (z_vae - shift) * scale`.
        picture_size: width and height of its pictures, where none are asked for.
        more_sizes: further ones that graphs are made for.
        tasks: what it can do, by name.
        directory: or the checkpoint's file.
        digest: identity of its weights.
        weight_files: where they lie.
        notes: what was read otherwise than a file of the model says, a line each.
        samplers: see `BundleManifest.samplers`.
        preview: colours of its latents, once they are fitted.
        adapter_defaults: name -> how an adapter that is built in is meant to be run; its own tasks run so already.
        vae_overflows: its autoencoder's activations leave the range of half precision.
    """

    directory: Path
    unet: nn.Module
    text_encoder: nn.Module
    vae: nn.Module
    tokenizer: str
    schedule: NoiseSchedule
    latent: LatentSpec
    text: TextSpec
    picture_size: PictureSize
    tasks: dict[str, TaskSpec]
    digest: str
    weight_files: tuple[StableFile, ...] = ()
    notes: tuple[str, ...] = ()
    samplers: Mapping[str, SamplerSettings] = field(default_factory=dict)
    preview: LatentPreview | None = None
    adapter_defaults: Mapping[str, AdapterDefaults] = field(default_factory=dict)
    more_sizes: tuple[PictureSize, ...] = ()
    vae_overflows: bool = False

    def digest_as(self, expected: str) -> str:
        """`expected` where that is its identity, in the form of this version or of bundles before 0.2; else its own."""
        former = expected != self.digest and expected == files_digest(self.directory, self.weight_files)
        return expected if former else self.digest

    def run_with(self, task: str, adapter: str | None) -> TaskSpec:
        """A task as an adapter wants it to be run; None for the task's own."""
        spec = self.tasks[task]
        defaults = self.adapter_defaults.get(adapter or "")
        return spec if defaults is None else reachable_strength(with_defaults(spec, defaults, self.samplers))

    @property
    def sizes(self) -> tuple[PictureSize, ...]:
        """All sizes of its pictures, the first one first."""
        return (self.picture_size, *self.more_sizes)

    def at(self, size: PictureSize) -> Base:
        """The same model with pictures of this size alone."""
        return replace(self, picture_size=size, more_sizes=())


@dataclass(frozen=True)
class BaseOptions:
    """The choices that are open when a model is opened.

    Args:
        size: `WIDTHxHEIGHT` in pixels, multiples of 64, or one number for both, or several with commas between; None for
            the model's own.
        sampler: `KIND` or `KIND:STEPS` for all tasks; None for the model's own.
        adapters: names of those that will be built in; one that is named like a task becomes that task's.
        adapter_defaults: how those are meant to be run, as far as it is known.
        vae: the autoencoder's file or directory, in place of the model's own.
        prediction: `epsilon` or `v`, of a one-file checkpoint; None for what it tells itself.
        compact_from: as `least` of `StoredComponent.load`.
    """

    size: str | int | None = None
    sampler: str | None = None
    adapters: Collection[str] = ()
    _: KW_ONLY
    adapter_defaults: Mapping[str, AdapterDefaults] = field(default_factory=dict)
    vae: Path | None = None
    prediction: str | None = None
    compact_from: int | None = None

    def asked_sizes(self, option: str = "--size") -> tuple[PictureSize, ...]:
        """The sizes as width and height, none for the model's own.

        Args:
            option: what asked for it, for the message.

        Raises:
            UsageError: it is no size, or its sides are no multiples of 64.
        """
        if self.size is None:
            return ()
        sizes = parse_sizes(option, self.size)
        for size in sizes:
            if any(not SIZE_STEP <= side <= LARGEST_SIZE or side % SIZE_STEP for side in size):
                raise UsageError(
                    mismatch(option, f"multiples of {SIZE_STEP} pixels up to {LARGEST_SIZE}", repr(self.size), "choose others")
                )
        return sizes

    def check(self, option: str = "--size") -> None:
        """Refuse a size or a sampler before anything is loaded.

        Args:
            option: what asked for the size, for the message.

        Raises:
            UsageError: a size of sides that are no multiples of 64, a sampler that the runtime has not, or an unknown word of prediction.
        """
        self.asked_sizes(option)
        if self.prediction is not None:
            prediction_word(self.prediction)
        if self.sampler is not None:
            parse_sampler(self.sampler)


def _sizes(directory: Path, unet: Any, toyland: Toyland, latent: LatentSpec, options: BaseOptions) -> tuple[PictureSize, ...]:
    """Width and height, one or several: asked for, the world's, or what the denoiser was trained on."""
    if asked := options.asked_sizes():
        return asked
    if (size := toyland.settings.size) is not None:
        if not latent.factor <= size <= LARGEST_SIZE or size % latent.factor:
            expected = f"a size up to {LARGEST_SIZE}, a multiple of {latent.factor}"
            raise InputError(mismatch(f"{toyland.file}", expected, size, "mend the file"))
        return (square(size),)
    grid = trained_grid(unet)
    if grid is None or not all(1 <= side <= LARGEST_SIZE // latent.factor for side in grid):
        expected = "one number, or height and width, as sample_size"
        raise UnsupportedError(mismatch(f"{denoiser_folder(directory)}", expected, unet["sample_size"], "say it in pixels: --size"))
    return (PictureSize(grid[1] * latent.factor, grid[0] * latent.factor),)


def _text(directory: Path, unet: StoredComponent, text: TextSpec, family: Family) -> TextSpec:
    """The text encoder's input and all that the denoiser reads of it.

    Raises:
        InputError: they are not of one model.
    """
    name, remedy = family.denoiser.text_width, "use the model's own text encoder"
    if (width := unet.config[name]) != text.hidden:
        raise InputError(mismatch(f"{directory / TEXT_ENCODER}", f"{width} numbers per token ({name})", text.hidden, remedy))
    if not family.denoiser.sizes:
        return text
    network: Any = unet.module
    if network.pooled != text.pooled:
        expected = f"{network.pooled} numbers of a prompt as a whole (projection_class_embeddings_input_dim)"
        raise InputError(mismatch(f"{directory / family.texts[-1].folder}", expected, text.pooled, remedy))
    return msgspec.structs.replace(text, sizes=network.sinusoid)


def _tasks(family: Family, toyland: Toyland, latent: LatentSpec, sampler: SamplerSpec, options: BaseOptions) -> dict[str, TaskSpec]:
    """The world's own tasks, or those of any model of its kind."""
    if not toyland.settings.tasks:
        return plain_tasks(family, latent.beside, sampler, options.adapters)
    if options.sampler is None:
        return toyland.settings.tasks
    return {name: msgspec.structs.replace(spec, sampler=sampler) for name, spec in toyland.settings.tasks.items()}


def open_model(model: Path, options: BaseOptions | None = None) -> Base:
    """Open a model: a directory in diffusers' layout, with `toyland.json` where it has one, or a one-file checkpoint of Stable Diffusion.

    Configs, tokenizer and the names and shapes in all weight files come first: what does not fit is said before gigabytes are read.

    Raises:
        InputError: no model there, weights missing, pickled, truncated or of another config, no tokenizer.
        UnsupportedError: a family, a class, a scheduler or a conditioning that quad does not know.
        UsageError: a size or sampler that cannot be.
    """
    options = options or BaseOptions()
    options.check()
    parts = _parts(model, options)
    schedule, sampler = read_scheduler(parts.scheduler, options.sampler, parts.pipeline, parts.index_class)
    unet, vae, texts = parts.unet, parts.vae, parts.texts
    family, toyland = parts.family, read_toyland(model)
    inputs = denoiser_inputs(family, model / family.denoiser.folder, unet.config, int(vae.config.latent_channels))
    latent = latent_spec(toyland, vae.config, inputs, statistics=family.vae_statistics)
    text = _text(model, unet, texts.text, family)
    sizes, tasks = _sizes(model, unet.config, toyland, latent, options), _tasks(family, toyland, latent, sampler, options)
    samplers = stated_samplers(parts.scheduler, sampler, parts.pipeline, parts.index_class)
    networks = {UNET: unet.load(options.compact_from), TEXT_ENCODER: texts.load(options.compact_from), VAE: vae.load()}
    base = Base(
        directory=model,
        unet=networks[UNET],
        text_encoder=networks[TEXT_ENCODER],
        vae=networks[VAE],
        tokenizer=texts.tokenizer,
        schedule=schedule,
        latent=latent,
        text=text,
        picture_size=sizes[0],
        more_sizes=sizes[1:],
        tasks=tasks,
        digest=tensors_digest(networks),
        weight_files=(*unet.files, *vae.files, *texts.files),
        notes=(*parts.notes, *unet.notes, *texts.notes, *vae.notes),
        samplers=samplers,
        adapter_defaults=options.adapter_defaults,
        vae_overflows=family.vae_overflows and bool(vae.config.get("force_upcast", True)),
    )
    return replace(base, tasks={name: base.run_with(name, spec.adapter) for name, spec in base.tasks.items()})


def _parts(model: Path, options: BaseOptions) -> ModelParts:
    """A directory's parts, or a checkpoint's."""
    if model.is_file():
        return checkpoint_parts(model, options.vae, options.prediction)
    if options.prediction is not None:
        remedy = "a directory says it in scheduler_config.json (prediction_type): leave the option out"
        raise UsageError(mismatch("--prediction", "a one-file checkpoint as MODEL", f"{model}", remedy))
    return directory_parts(model, options.vae)


def text_module(base: Base) -> nn.Module:
    """The text encoder's graph; shares the base's weights, not its structure."""
    return TextModule(with_vector_table(share_copy(base.text_encoder))).eval()


def vae_encoder_module(base: Base) -> nn.Module:
    """The VAE encoder's graph; shares the base's weights, not its structure."""
    return VaeEncoderModule(share_copy(base.vae), base.latent).eval()


def vae_decoder_module(base: Base) -> nn.Module:
    """The VAE decoder's graph; shares the base's weights, not its structure."""
    return VaeDecoderModule(share_copy(base.vae), base.latent).eval()
