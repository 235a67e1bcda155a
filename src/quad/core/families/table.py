"""The columns of a family's table: all that quad knows of models that are opened in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quad.core.manifest import Beside
from quad.core.slots import TEXT_ENCODER

# What a model reads beside the latent; a name for each of the two that many families have.
INPAINTING: tuple[Beside, ...] = ("mask", "condition")
EDITING: tuple[Beside, ...] = ("raw-condition",)
Condition = Literal["none", "cut-image", "image"]
Component = Literal["unet", "text_encoder", "text_encoder_2"]  # that a LoRA changes
Hidden = Literal["last", "penultimate"]


@dataclass(frozen=True, kw_only=True)
class ConfigRule:
    """Values that one field of the denoiser's config may have.

    Args:
        allowed: values, None for all that are not refused; of a list each entry is looked at.
        refused: values, whatever is allowed.
        default: value of a config that does not have the field.
        expected: begins the refusal.
        shown: ends it, in place of the field and its value.
        when: the rule counts only where these other fields have these values.
    """

    name: str
    allowed: tuple[Any, ...] | None = None
    refused: tuple[Any, ...] = ()
    default: Any = None
    expected: str
    shown: str = ""
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which the denoiser's input is laid out, and what a model of it does.

    Args:
        beside: what follows the latent.
        condition: where its tasks take the condition latent from.
        shown: what messages call it.
        pipeline: diffusers' class for a one-file checkpoint.
        scheduler: name of the config in `checkpoint/data` for one that predicts noise.
    """

    beside: tuple[Beside, ...] = ()
    condition: Condition = "none"
    shown: str = ""
    pipeline: str = ""
    scheduler: str = "epsilon"


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The network that predicts the noise.

    Args:
        folder: in a model directory.
        classes: class name in its config -> `module:Class` that is called as a U-Net is.
        config_marks: fields of its config that tell the family from others with the same folder.
        rules: what its config may say.
        layouts: of its input, those without a picture first.
        variance: it may have learned the variance too, and then gives twice as many channels.
        text_width: field of its config that says how wide the text features are.
        sizes: it is told the picture's size.
    """

    folder: str
    classes: Mapping[str, str]
    config_marks: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[ConfigRule, ...] = ()
    layouts: tuple[Layout, ...]
    variance: bool = False
    text_width: str = "cross_attention_dim"
    sizes: bool = False


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder and its tokenizer.

    Args:
        folder, tokenizer: in a model directory; LoRA files call it by that folder.
        classes: class name in its config -> `module:Class` that is called as CLIP is.
        part: what begins the paths of its modules, where there are several.
        hidden: layer whose states the denoiser reads; behind the last one a layer norm follows.
        pooled: the projection of its state at a prompt's end goes to the denoiser too.
        caption_length: tokens of a caption, stripped and in lower case; None for CLIP's tokenizer, whose length its config says.
    """

    folder: Component = TEXT_ENCODER
    tokenizer: str = "tokenizer"
    classes: Mapping[str, str]
    part: str = ""
    hidden: Hidden = "last"
    pooled: bool = False
    caption_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class OneFileText:
    """A text encoder in a one-file checkpoint.

    Args:
        prefix: of its tensors.
        spelling: whose names they have.
        layers: how many are there at most; None for all that the file has.
        pad: token that fills a prompt up.
    """

    prefix: str
    spelling: Literal["clip", "open-clip"]
    layers: int | None = None
    pad: str = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """Facts of one-file checkpoints that a file does not say itself.

    Args:
        texts: in the order of the family's text encoders; the first one's prefix tells the family.
        heads: of every attention; None for heads of 64 channels.
        side, velocity_side: latent pixels along one side that it was trained on, predicting noise or velocity.
        guess_velocity: where nothing says it, the spread of one bias does (ComfyUI's rule).
    """

    texts: tuple[OneFileText, ...]
    heads: int | None
    side: int
    velocity_side: int
    guess_velocity: bool = False


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Names by which a file or a class shows its family; none where nothing does.

    Args:
        classes: parts of the names of its pipelines and networks.
        tensors: parts of names in its one-file checkpoints.
        keys: a regular expression of names that only its LoRA files have.
        metadata: one that begins the base's name in a LoRA's metadata, in lower case with '-' for '_'.
        text_width: of the text features, which shows by a layer that reads them; None where it shows nothing.
    """

    name: str
    classes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    keys: str = ""
    metadata: str = ""
    text_width: int | None = None


@dataclass(frozen=True, kw_only=True)
class LoraNames:
    """How LoRA files for the family spell the modules of its networks.

    Args:
        prefixes: before a path with dots -> component.
        flat_prefixes: before a path whose dots are underscores -> component; None where the prefix does not say which.
        spellings: names of transforms in `quad.lora.module_names`, which give the denoiser's modules further names.
        named_velocity: the base's name in the metadata says whether it predicts velocity.
    """

    prefixes: Mapping[str, Component] = field(default_factory=dict)
    flat_prefixes: Mapping[str, Component | None] = field(default_factory=dict)
    spellings: tuple[str, ...] = ()
    named_velocity: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Args:
        name: as messages call it.
        pipelines: diffusers' classes in `model_index.json`.
        repairs: pipeline -> fields that it overwrites in a scheduler's config.
        texts: text encoders, in the order in which their states stand side by side.
        zeros_for_empty: an empty negative prompt is zeros, where `model_index.json` (`force_zeros_for_empty_prompt`) does not say.
        vae_scaling: of its autoencoder's latents, where it is given in original names, which do not say.
        vae_statistics: its pipelines read the mean and the spread of each channel of these latents (latents_mean, latents_std).
        vae_overflows: activations of its autoencoder leave the range of half precision, unless its config says that they do not.
        guidance: scale where nobody says.
        one_file: None where one-file checkpoints do not open.
    """

    name: str
    signs: Signs
    pipelines: tuple[str, ...]
    repairs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    denoiser: Denoiser
    texts: tuple[TextEncoder, ...]
    zeros_for_empty: bool = False
    vae_scaling: float
    vae_statistics: bool = False
    vae_overflows: bool = False
    guidance: float
    one_file: OneFile | None = None
    lora: LoraNames

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of a model directory that are its own: of the denoiser, text encoders and tokenizers."""
        return (self.denoiser.folder, *(text.folder for text in self.texts), *(text.tokenizer for text in self.texts))
