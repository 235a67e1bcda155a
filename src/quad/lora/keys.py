"""The names of LoRA tensors, in every dialect: diffusers, PEFT, kohya and LyCORIS, old diffusers.

A name is a prefix (which component, and whether dots became underscores), a module path and a role. Roles are those of `quad.lora.kinds`;
what the path means in a network is `quad.lora.module_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quad.core.errors import UnsupportedError, mismatch
from quad.core.families import FAMILIES, Component
from quad.core.slots import TEXT_ENCODER, TEXT_ENCODER_2
from quad.lora.kinds import ENDINGS, NOT_READ, TEXTUAL_INVERSION
from quad.lora.quote import quoted
from quad.lora.tensors import Role

EMBEDDING_REMEDY = "it belongs to a prompt: quad run --embedding WORD=FILE"
PEFT_WRAPPER = "base_model.model."
_LOADED = re.compile(r"\.lora_(?:[AB]\.[\w-]+\.weight|magnitude_vector\.[\w-]+)$")
_MODEL_PREFIXES = (PEFT_WRAPPER, "model.diffusion_model.", "diffusion_model.")
# Of all families; a transformer that denoises stands where the U-Net stands.
_PREFIXES = {prefix: component for family in FAMILIES for prefix, component in family.lora.prefixes.items()}
DOTTED_PREFIXES: tuple[tuple[str, Component], ...] = tuple(_PREFIXES.items())
_FLAT_PREFIXES = {prefix: component for family in FAMILIES for prefix, component in family.lora.flat_prefixes.items()}
_TEXT_PATHS = ("text_model.", "text_model_", "encoder.layers.")
# Old diffusers called the text encoder's projections as it called the U-Net's.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OLD_TEXT_KEY = re.compile(r"(?<=\.self_attn\.)(to_q|to_k|to_v|to_out)$")


@dataclass(frozen=True, kw_only=True)
class LoraKey:
    """A tensor's name, taken apart.

    Args:
        path: of the module, as the file spells it, without prefix.
        flat: kohya's underscores are still in the path.
        component: the model that the prefix names; None where the file does not say.
    """

    path: str
    role: Role
    flat: bool = False
    component: Component | None = None


# How a key shows the way in which its file spells names, in this order.
_DIALECTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^bundle_emb\.", "OneTrainer"),
        (r"base_model\.model\.|\.lora_[AB]\.[\w-]+\.weight$", "PEFT"),
        (r"^lycoris_|\.(?:hada|lokr)_|\.dora_scale$", "LyCORIS"),
        (r"^lora_(?:unet|te[12]?|transformer)_", "kohya"),
        (r"^(?:model\.)?diffusion_model\.|(?:clip_[lgh]|cond_stage_model|conditioner\.embedders\.\d)\.transformer\.", "ComfyUI"),
        (r"^clip_[lg]\.|^unet\.(?:input_blocks|middle_block|output_blocks|time_embed|out)\.", "OMI"),
        (r"_lora\.(?:down|up)\.|\.lora\.(?:down|up)\.|\.processor\.|lora_linear_layer", "older diffusers"),
        (r"^(?:unet|transformer|text_encoder(?:_2)?)\.", "diffusers"),
        (r"^(?:input_blocks|middle_block|output_blocks|time_embed|out)\.", "original names"),
    )
)


def dialect_of(key: str) -> str:
    """How a file spells the name of a tensor: the trainer or library that calls it so."""
    return next((name for pattern, name in _DIALECTS if pattern.search(key)), "no prefix")


def is_peft_key(key: str) -> bool:
    """Whether only PEFT calls a tensor so: its wrapper's name is in it, or that of an adapter in a model that is loaded."""
    return PEFT_WRAPPER in key or _LOADED.search(key) is not None


def is_bundled(key: str) -> bool:
    """Whether a tensor is no part of the LoRA, but an embedding that travels in its file."""
    return key.startswith("bundle_emb.")


def is_text_key(key: LoraKey) -> bool:
    """Whether the name can only mean a text encoder."""
    return key.component in (TEXT_ENCODER, TEXT_ENCODER_2) or (key.component is None and key.path.startswith(_TEXT_PATHS))


def refuse_other_kinds(keys: Iterable[str]) -> None:
    """Refuse, by name, every kind of adapter that is none of those read.

    Raises:
        UnsupportedError: with the kind and the first key that shows it.
    """
    for key in keys:
        for fragment, kind in NOT_READ:
            if fragment in key and not is_bundled(key):
                remedy = EMBEDDING_REMEDY if kind == TEXTUAL_INVERSION else "convert it to LoRA, or leave it out"
                raise UnsupportedError(mismatch(f"key '{quoted(key)}'", "LoRA, LoHa, LoKr, DoRA or weight differences", kind, remedy))


def _split(key: str) -> tuple[str, Role] | None:
    """The module's name with its prefixes, and the role."""
    for ending, role in ENDINGS.items():
        if match := ending.search(key):
            return key[: match.start()], role
    return None


def _component(name: str) -> tuple[str, Component | None]:
    """A module's path without what names the model it is in, and that model."""
    component: Component | None = None
    for prefix, prefixed in ((PEFT_WRAPPER, None), *DOTTED_PREFIXES, *((prefix, None) for prefix in _MODEL_PREFIXES)):
        if name.startswith(prefix):
            name, component = name.removeprefix(prefix), prefixed or component
    return name, component


def parse_key(key: str) -> LoraKey | None:
    """The parts of a tensor's name; None if it is no LoRA name in any dialect we know."""
    if (parts := _split(key)) is None:
        return None
    name, role = parts
    path, component = _component(name)
    for prefix, flat_component in _FLAT_PREFIXES.items():
        if path.startswith(prefix):
            return LoraKey(path=path.removeprefix(prefix), role=role, flat=True, component=flat_component)
    path = path.replace(".processor.", ".")
    if old := _OLD_TEXT_KEY.search(path):
        path = path[: old.start()] + _OLD_TEXT[old[1]]
    # Old diffusers called the output projection by its list, not by its layer.
    return LoraKey(path=path + ".0" if path.endswith(".to_out") else path, role=role, component=component)
